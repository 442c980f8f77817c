-- Raises an account's caps, once per key, and lets it go on.
--
-- KEYS  3 the account  4 its top-ups     ARGV  6 key  7 mark of this very attempt  8-11 how much
if lost then return refuse_lost() end
local it = account(KEYS[3])
local before = call('HGET', KEYS[4], ARGV[6])
if not before then
  commit()
  call('HSET', KEYS[4], ARGV[6], ARGV[7])
  for unit = 1, 4 do it[12 + unit] = it[12 + unit] + tonumber(ARGV[7 + unit]) end
  it.stopped = ''
  call('SET', KEYS[3], text_of(it))
end
local answer = reply('OK')
answer[5], answer[6] = (not before or before == ARGV[7]) and 1 or 0, text_of(it)
return answer
