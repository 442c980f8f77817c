-- Somebody looked at what was lost: goes on, in a new epoch that those who knew an earlier one may join.
--
-- ARGV  6 the new epoch
if not lost then return reply('NONE') end
local former = call('HGET', KEYS[1], 'former')
call('HSET', KEYS[1], 'former', (former or '') .. ' ' .. epoch, 'epoch', ARGV[6])
call('HDEL', KEYS[1], 'lost')
commit()
local answer = reply('OK')
answer[5] = ARGV[6]
return answer
