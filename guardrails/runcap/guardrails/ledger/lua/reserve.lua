-- Grants the first offer that every account has room for: the rule of state.py, in one step.
--
-- KEYS  3 held  4 dead  5 the call's hold, then the accounts
-- ARGV  6 call id  7 the end of the hold: ids of the accounts, about (lines of JSON)  8 how many offers, then each
--       (packed: 1-4 most, 5-8 least, 9-10 expected, 11-14 spare, 15 what it is: 1 the last answer, 2 a call made
--       already, which is granted in full and leaves the caps alone), then each account's caps (packed)
if lost then return refuse_lost() end
local accounts, size = {}, #KEYS - 5
if size > 0 then
  local texts = call('MGET', unpack(KEYS, 6))
  for i = 1, size do accounts[i] = account(KEYS[5 + i], texts[i]) end
end

local held = call('GET', KEYS[5])
if held then
  local answer = reply('OK')
  for i = 1, 5 do answer[4 + i] = struct.unpack('<i8', held, 8 * i - 7) end
  for i = 1, size do answer[9 + i] = text_of(accounts[i]) end
  return answer
end

local count = tonumber(ARGV[8])
local last = ARGV[8 + count]
local news, made = false, string.sub(last, 113, 113) == '\2'
for i = 1, made and 0 or size do
  local it, given = accounts[i], ARGV[8 + count + i]
  if it.given ~= given then
    it[17], it[18], it[19], it[20] = struct.unpack('<i8i8i8i8', given)
    news = true
  end
end

local OFFER = '<i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8'
local function offer_of(packed) return {struct.unpack(OFFER, packed)} end

-- Which account refuses, in which unit (false: it is stopped, or the call is dead).
local function refuse(index, unit)
  if news then
    commit()
    for i = 1, size do call('SET', KEYS[5 + i], text_of(accounts[i])) end
  end
  local answer = reply('NO')
  answer[5], answer[6], answer[7] = index, unit, text_of(accounts[index])
  return answer
end

local dead = call('ZSCORE', KEYS[4], ARGV[6])
for i = 1, size do
  local why = accounts[i].stopped
  if dead or (why ~= '' and not made) then
    local passes = string.sub(why, 1, 5) == '"cap:' or string.sub(why, 1, 6) == '"loop:'
    if dead or not (passes and offer_of(last)[15] == 1) then return refuse(i, false) end
  end
end

local function left(it, unit)
  local used = it[2 + unit]
  if unit <= 2 then used = used + it[6 + unit] + it[8 + unit] end
  return it[16 + unit] + it[12 + unit] - used
end

-- What an offer may take of every account, in its first four places; nil where not even its least is free.
local function room(offer)
  for i = 1, size do
    local it = accounts[i]
    for unit = 1, 4 do
      if it[16 + unit] >= 0 then
        local free = left(it, unit) - offer[10 + unit]
        if free < offer[unit] then
          if free < 0 then free = 0 end
          if offer[4 + unit] > free then return nil end
          offer[unit] = free
        end
      end
    end
  end
  return offer
end

local amount, index = made and offer_of(last), 0
for i = 1, made and 0 or count do
  amount, index = room(offer_of(ARGV[8 + i])), i - 1
  if amount then break end
end

if not amount then
  local offer = offer_of(last)
  for i = 1, size do
    local it = accounts[i]
    for _, unit in ipairs({3, 4, 1, 2}) do
      local needed = offer[4 + unit] + offer[10 + unit]
      if needed > 0 and it[16 + unit] >= 0 and needed > math.max(left(it, unit), 0) then
        return refuse(i, unit - 1)
      end
    end
  end
  return redis.error_reply('ERR an offer that every account has room for was not granted')
end

-- Steps and tool calls count at once; dollars and tokens are held.
commit()
local nano, tokens, steps, tool_calls = amount[1], amount[2], amount[3], amount[4]
local answer = {'OK', seq, now, own, index, nano, tokens, steps, tool_calls}
local holds = nano > 0 or tokens > 0
local gens, writes = '[', {}
for i = 1, size do
  local it = accounts[i]
  it[5], it[6] = it[5] + steps, it[6] + tool_calls
  if holds then
    it[2], it[7], it[8] = it[2] + 1, it[7] + nano, it[8] + tokens
    it[11], it[12] = it[11] + amount[9], it[12] + amount[10]
  end
  local text = text_of(it)
  writes[2 * i - 1], writes[2 * i], answer[9 + i] = KEYS[5 + i], text, text
  gens = string.format(i == 1 and '%s%d' or '%s,%d', gens, it[1])
end
if holds then
  local figures = struct.pack(HOLD, index, nano, tokens, steps, tool_calls, amount[9], amount[10], now, 0, 0, 0, 0, 0)
  writes[2 * size + 1] = KEYS[5]
  writes[2 * size + 2] = figures .. 'held\n' .. owner .. '\n' .. gens .. ']\n\n' .. ARGV[7]
  call('ZADD', KEYS[3], string.format('%d', now), ARGV[6])
end
if #writes > 0 then call('MSET', unpack(writes)) end
return answer
