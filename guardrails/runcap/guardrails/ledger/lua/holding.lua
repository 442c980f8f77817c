-- A hold is six lines and what the client had to say: its figures (JSON: 1 offer, 2-5 amount, 6-7 expected, 8 since when,
-- 9-10 charged, 11-12 unknown, 13 revisions of its record), "held" or "unknown", its owner, the generations of its
-- accounts (JSON), the id of its last record; then the ids of its accounts and about (JSON).
local function hold_at(key)
  local text = call('GET', key)
  if not text then return nil end
  local figures, state, of, gens, record, told = string.match(text, '^(.-)\n(.-)\n(.-)\n(.-)\n(.-)\n(.*)$')
  local hold = cjson.decode(figures)
  hold.held, hold.owner, hold.gens, hold.record, hold.told = state == 'held', of, gens, record, told
  return hold
end

local HOLD = '[%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f]\nunknown\n%s\n%s\n%s\n%s'
local function keep_unknown(key, hold)
  call('SET', key, string.format(HOLD, hold[1], hold[2], hold[3], hold[4], hold[5], hold[6], hold[7], hold[8], hold[9],
    hold[10], hold[11], hold[12], hold[13], hold.owner, hold.gens, hold.record, hold.told))
end

-- Appends a usage record, in the stream and in the list of its run.
local function append(usage, run, call_id, run_id, hold, record)
  hold.record = call('XADD', usage, '*', 'call', call_id, 'run', run_id, 'rev', hold[13], 'rec', record)
  call('RPUSH', run, hold.record)
  hold[13] = hold[13] + 1
end
