-- What ends holds: see common.lua.
local function hold_at(key)
  local text = call('GET', key)
  if not text then return nil end
  local hold = {struct.unpack(HOLD, text)}
  local state, of, gens, record, told = string.match(text, '^(.-)\n(.-)\n(.-)\n(.-)\n(.*)$', 105)
  hold.held, hold.owner, hold.gens, hold.record, hold.told = state == 'held', of, gens, record, told
  return hold
end

local function keep_unknown(key, hold)
  call('SET', key, struct.pack(HOLD, unpack(hold, 1, 13)) .. 'unknown\n' .. hold.owner .. '\n' .. hold.gens .. '\n'
    .. hold.record .. '\n' .. hold.told)
end

-- Appends a usage record, in the stream and in the list of its run.
local function append(usage, run, call_id, run_id, hold, record)
  hold.record = call('XADD', usage, '*', 'call', call_id, 'run', run_id, 'rev', hold[13], 'rec', record)
  call('RPUSH', run, hold.record)
  hold[13] = hold[13] + 1
end
