-- Ends a call: charges it in full, keeps what may have been billed beyond that as unknown, frees the rest, and appends
-- its usage record. A call that left an unknown rest gets both replaced. A release charges nothing.
--
-- KEYS  3 held  4 unknown  5 dead  6 usage  7 the run's records  8 revised  9 the call's hold, then the accounts
-- ARGV  6 call id  7 'settle' or 'release'  8, 9 the charge  10, 11 what stays unknown  12 run id
--       13 record (JSON, or '')  14 the epoch this client reserved the call in ('': it did not)
--       then, once the hold was found to be lost: 15 its figures (packed)  16 its end (lines of JSON)
local call_id = ARGV[6]

local function bury()
  call('ZADD', KEYS[5], now, call_id)
  call('ZREMRANGEBYRANK', KEYS[5], 0, -65537)
end

local texts = call('MGET', unpack(KEYS, 9))
local hold = hold_at(KEYS[9], texts[1])
local found = hold ~= nil
if not found then
  local is_dead = call('ZSCORE', KEYS[5], call_id)
  -- A hold that went with the data is charged all the same, once: what was billed is not lost with it.
  local went = not is_dead and ARGV[14] ~= '' and (lost or ARGV[14] ~= epoch)
  if not went then
    if ARGV[7] == 'release' and not is_dead then
      bury()
      commit()
    end
    return reply('NONE')
  end
  if not ARGV[15] then return reply('GONE') end
  hold = {struct.unpack(HOLD, ARGV[15])}
  hold[8], hold.owner, hold.record, hold.told = now, owner, '', ARGV[16]
end
local nano, tokens, unknown_nano, unknown_tokens =
  tonumber(ARGV[8]), tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
local rest = unknown_nano > 0 or unknown_tokens > 0

-- First what frees memory: Redis lets a script that wrote already go on where memory is full, so calls can end.
call('ZREM', hold.held and KEYS[3] or KEYS[4], call_id)
if not rest then call('DEL', KEYS[9]) end

commit()
local answer, gens, writes = reply('OK'), found and cjson.decode(hold.gens) or {}, {}
for i = 1, #KEYS - 9 do
  local it = account(KEYS[9 + i], texts[1 + i])
  if not found then
    it[5], it[6] = it[5] + hold[4], it[6] + hold[5]
    if it[1] == 0 then it[1] = seq end
    gens[i] = it[1]
  end
  if it[1] > 0 and it[1] == gens[i] then
    it[3], it[4] = it[3] + nano - hold[9], it[4] + tokens - hold[10]
    if hold.held then
      it[2], it[7], it[8] = it[2] - 1, it[7] - hold[2], it[8] - hold[3]
      it[11], it[12] = it[11] - hold[6], it[12] - hold[7]
    end
    it[9], it[10] = it[9] + unknown_nano - hold[11], it[10] + unknown_tokens - hold[12]
    local text = text_of(it)
    local at = #writes
    writes[at + 1], writes[at + 2] = KEYS[9 + i], text
    answer[at + 5], answer[at + 6] = i, text
  end
end
if #writes > 0 then call('MSET', unpack(writes)) end

if ARGV[13] ~= '' then
  if hold[13] > 0 then call('HSET', KEYS[8], call_id, hold[13]) end
  append(KEYS[6], KEYS[7], call_id, ARGV[12], hold, ARGV[13])
end
if rest then
  if not found then
    for i = 1, #gens do gens[i] = string.format('%d', gens[i]) end
    hold.gens = '[' .. table.concat(gens, ',') .. ']'
  end
  hold[9], hold[10], hold[11], hold[12] = nano, tokens, unknown_nano, unknown_tokens
  keep_unknown(KEYS[9], hold)
  call('ZADD', KEYS[4], hold[8], call_id)
elseif hold.owner ~= owner or not found then
  bury() -- whoever reserved it may yet end it, and must not have it charged again as lost
end
return answer
