-- Says that the owner is alive (common.lua does), and forgets owners that have been silent for a day.
--
-- ARGV  6 microseconds after which an owner is forgotten
for _, gone in ipairs(call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[6], 'LIMIT', 0, 100)) do
  call('ZREM', KEYS[2], gone)
  call('HDEL', KEYS[1], 'seq:' .. gone)
end
if lost then return refuse_lost() end
return reply('OK')
