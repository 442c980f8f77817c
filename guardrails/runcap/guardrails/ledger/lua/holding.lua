-- What ends holds: see common.lua.
local function hold_at(key, text)
  text = text or call('GET', key) -- also where MGET found nothing: it passes over what is of another type
  if not text then return nil end
  local state, of, gens, record, rest = string.match(text, '^(.-)\n(.-)\n(.-)\n(.-)\n()', 105)
  return {
    held = state == 'held', owner = of, gens = gens, record = record, text = text, told_at = rest,
    struct.unpack(HOLD, text)
  }
end

local function keep_unknown(key, hold)
  local told = hold.told or string.sub(hold.text, hold.told_at)
  call('SET', key, struct.pack(HOLD, unpack(hold, 1, 13)) .. 'unknown\n' .. hold.owner .. '\n' .. hold.gens .. '\n'
    .. hold.record .. '\n' .. told)
end

-- Appends a usage record, in the stream and in the list of its run.
local function append(usage, run, call_id, run_id, hold, record)
  hold.record = call('XADD', usage, '*', 'call', call_id, 'run', run_id, 'rev', hold[13], 'rec', record)
  call('RPUSH', run, hold.record)
  hold[13] = hold[13] + 1
end
