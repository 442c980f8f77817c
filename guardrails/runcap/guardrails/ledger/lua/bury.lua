-- Makes a hold unknown, all of it, where its owner gave no sign of life for long or does not know it any more.
--
-- KEYS  3 held  4 unknown  5 usage  6 the run's records  7 the call's hold, then the accounts
-- ARGV  6 call id  7 microseconds  8 '1': it is this client's own, and it does not know it  9 run id
--       10 record (JSON, or '')
local hold = hold_at(KEYS[7])
if not hold or not hold.held then return reply('NONE') end
local beat = tonumber(call('ZSCORE', KEYS[2], hold.owner) or 0)
-- A sign of life from the future is none: the clock went back.
local silent = math.abs(now - beat) > tonumber(ARGV[7])
if not silent and not (ARGV[8] == '1' and hold.owner == owner) then return reply('NONE') end

call('ZREM', KEYS[3], ARGV[6])
commit()
for i, gen in ipairs(cjson.decode(hold.gens)) do
  local it = account(KEYS[7 + i])
  if it[1] == gen then
    it[2], it[7], it[8] = it[2] - 1, it[7] - hold[2], it[8] - hold[3]
    it[9], it[10] = it[9] + hold[2], it[10] + hold[3]
    it[11], it[12] = it[11] - hold[6], it[12] - hold[7]
    call('SET', KEYS[7 + i], text_of(it))
  end
end
if ARGV[10] ~= '' then append(KEYS[5], KEYS[6], ARGV[6], ARGV[9], hold, ARGV[10]) end
hold[11], hold[12] = hold[2], hold[3]
keep_unknown(KEYS[7], hold)
call('ZADD', KEYS[4], hold[8], ARGV[6])
return reply('OK')
