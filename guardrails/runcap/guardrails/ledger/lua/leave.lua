-- The owner is gone. What it still holds counts as old, so that the next heartbeat of anybody finds it.
--
-- KEYS  3 held     ARGV  from 6: ids of the calls it knows to be in flight
call('ZREM', KEYS[2], owner)
call('HDEL', KEYS[1], 'seq:' .. owner)
for i = 6, #ARGV do call('ZADD', KEYS[3], 'XX', 0, ARGV[i]) end
return reply('OK')
