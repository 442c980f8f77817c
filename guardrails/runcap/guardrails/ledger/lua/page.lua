-- Usage records in the order they were written, each with the verdict on its run and whether it is its call's latest.
--
-- KEYS  3 usage  4 verdicts  5 revised  6 the run's records, where those are asked for
-- ARGV  6 from which entry on (of a run: how many to pass over)  7 to which  8 how many
local entries = {}
if KEYS[6] then
  for _, id in ipairs(call('LRANGE', KEYS[6], ARGV[6], ARGV[6] + ARGV[8] - 1)) do
    entries[#entries + 1] = call('XRANGE', KEYS[3], id, id)[1] or {id, false}
  end
else
  entries = call('XRANGE', KEYS[3], ARGV[6], ARGV[7], 'COUNT', ARGV[8])
end
for _, entry in ipairs(entries) do
  local it = entry[2]
  if it then
    entry[3] = call('HGET', KEYS[4], it[4]) -- the run
    local latest = call('HGET', KEYS[5], it[2]) -- the call
    entry[4] = (not latest or latest == it[6]) and 1 or 0
  end
end
local answer = reply('OK')
answer[5] = entries
return answer
