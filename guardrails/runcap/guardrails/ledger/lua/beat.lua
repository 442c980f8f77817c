-- Says that the owner is alive (common.lua does), and forgets the owners that gave no sign of life for longest, where
-- there are very many. Not by time: a clock that jumps would have everybody forgotten.
--
-- ARGV  6 how many owners are remembered
local many = call('ZCARD', KEYS[2]) - ARGV[6]
for _, gone in ipairs(many > 0 and call('ZRANGE', KEYS[2], 0, math.min(many, 100) - 1) or {}) do
  call('ZREM', KEYS[2], gone)
  call('HDEL', KEYS[1], 'seq:' .. gone, 'noted:' .. gone)
end
if lost then return refuse_lost() end
return reply('OK')
