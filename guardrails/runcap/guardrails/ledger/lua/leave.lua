-- The owner is gone. What it still holds counts as old, so that the next heartbeat of anybody finds it. How far it had
-- come stays: other threads of it may be in the middle of an operation, which would take that for a loss.
--
-- KEYS  3 held     ARGV  from 6: ids of the calls it knows to be in flight
call('ZADD', KEYS[2], 0, owner)
for i = 6, #ARGV do call('ZADD', KEYS[3], 'XX', 0, ARGV[i]) end
return reply('OK')
