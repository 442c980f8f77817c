-- Adds notes up with those that are kept. They are no money: they do not count as writes, so that nobody misses them
-- where data was lost.
--
-- KEYS  3 the runs that have notes (list), then for each note the notes of its run (hash)
-- ARGV  6 the number of this batch among the owner's, then for each note: run id, about the run (JSON), what it is of
--       (JSON), count, tokens, cost ('': not known), first and last time (20 digits, for numbers would be rounded)
local name = 'noted:' .. owner
local known = call('ZSCORE', KEYS[2], owner) -- only where there is a sign of life to forget the number by
if known and (tonumber(call('HGET', KEYS[1], name)) or 0) >= tonumber(ARGV[6]) then return reply('NONE') end

local function sum(a, b) return string.format('%d', math.min(tonumber(a) + tonumber(b), 2 ^ 53 - 1)) end

for i = 4, #KEYS do
  local at = 7 + (i - 4) * 8
  local field, count, tokens, cost, first, last = unpack(ARGV, at + 2, at + 7)
  if call('HSETNX', KEYS[i], '', ARGV[at + 1]) == 1 then call('RPUSH', KEYS[3], ARGV[at]) end
  local before = call('HGET', KEYS[i], field)
  if before then
    local count0, tokens0, cost0, first0, last0 = string.match(before, '^(%d+) (%d+) (%d*) (%d+) (%d+)$')
    count, tokens = sum(count0, count), sum(tokens0, tokens)
    cost = (cost0 ~= '' and cost ~= '') and sum(cost0, cost) or cost0 .. cost
    if first0 < first then first = first0 end
    if last0 > last then last = last0 end
  end
  call('HSET', KEYS[i], field, table.concat({count, tokens, cost, first, last}, ' '))
end
if known then call('HSET', KEYS[1], name, ARGV[6]) end
return reply('OK')
