-- Ids of calls that have been held for long, or since a time that has yet to come: a page of them.
--
-- KEYS  3 held     ARGV  6 microseconds  7 how many to pass over  8 how many to give
local old = call('ZRANGEBYSCORE', KEYS[3], '-inf', now - ARGV[6], 'LIMIT', ARGV[7], ARGV[8])
if ARGV[7] == '0' then
  for _, id in ipairs(call('ZRANGEBYSCORE', KEYS[3], now + ARGV[6], '+inf', 'LIMIT', 0, ARGV[8])) do
    old[#old + 1] = id
  end
end
local answer = reply('OK')
answer[5] = old
return answer
