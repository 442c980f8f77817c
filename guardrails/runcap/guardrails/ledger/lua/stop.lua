-- Refuses every reservation on an account from now on. The first reason stays.
--
-- KEYS  3 the account     ARGV  6 reason (JSON)
local it = account(KEYS[3])
if it.stopped == '' then
  commit()
  it.stopped = ARGV[6]
  call('SET', KEYS[3], text_of(it))
end
local answer = reply('OK')
answer[5] = text_of(it)
return answer
