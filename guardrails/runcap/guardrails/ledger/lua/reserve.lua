-- Grants the first offer that every account has room for: the rule of state.py, in one step.
--
-- KEYS  3 held  4 dead  5 the call's hold, then the accounts
-- ARGV  6 call id  7 the end of the hold: ids of the accounts, about (lines of JSON)  8 how many offers, then each (JSON:
--       1-4 most, 5-8 least, 9-10 expected, 11-14 spare, 15 is it the last answer), then each account's caps (JSON)
if lost then return refuse_lost() end
local accounts, size = {}, #KEYS - 5
for i = 1, size do accounts[i] = account(KEYS[5 + i]) end

local held = call('GET', KEYS[5])
if held then
  local figures = cjson.decode(string.match(held, '^[^\n]*'))
  local answer = reply('OK')
  for i = 1, 5 do answer[4 + i] = figures[i] end
  for i = 1, size do answer[9 + i] = text_of(accounts[i]) end
  return answer
end

local count = tonumber(ARGV[8])
local last = ARGV[8 + count]
local news = false
for i = 1, size do
  local it, given = accounts[i], ARGV[8 + count + i]
  if it.given ~= given then
    it.given, news = given, true
  end
  it.caps = given ~= '[null,null,null,null]' and cjson.decode(given)
  if it.caps and it.extra ~= '[0,0,0,0]' then
    local extra = cjson.decode(it.extra)
    for unit = 1, 4 do
      if it.caps[unit] ~= cjson.null then it.caps[unit] = it.caps[unit] + extra[unit] end
    end
  end
end

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
  if dead or why ~= 'null' then
    local passes = string.sub(why, 1, 5) == '"cap:' or string.sub(why, 1, 6) == '"loop:'
    if dead or not (passes and cjson.decode(last)[15] == 1) then return refuse(i, false) end
  end
end

local function left(it, unit)
  local used = it[2 + unit]
  if unit <= 2 then used = used + it[6 + unit] + it[8 + unit] end
  return it.caps[unit] - used
end

-- What an offer may take of every account, in its first four places; nil where not even its least is free.
local function room(offer)
  for i = 1, size do
    local it = accounts[i]
    if it.caps then
      for unit = 1, 4 do
        if it.caps[unit] ~= cjson.null then
          local free = left(it, unit) - offer[10 + unit]
          if free < offer[unit] then
            if free < 0 then free = 0 end
            if offer[4 + unit] > free then return nil end
            offer[unit] = free
          end
        end
      end
    end
  end
  return offer
end

local amount, index
for i = 1, count do
  amount, index = room(cjson.decode(ARGV[8 + i])), i - 1
  if amount then break end
end

if not amount then
  local offer = cjson.decode(last)
  for i = 1, size do
    local it = accounts[i]
    for _, unit in ipairs({3, 4, 1, 2}) do
      local needed = offer[4 + unit] + offer[10 + unit]
      if it.caps and needed > 0 and it.caps[unit] ~= cjson.null and needed > math.max(left(it, unit), 0) then
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
local gens = '['
for i = 1, size do
  local it = accounts[i]
  it[5], it[6] = it[5] + steps, it[6] + tool_calls
  if holds then
    it[2], it[7], it[8] = it[2] + 1, it[7] + nano, it[8] + tokens
    it[11], it[12] = it[11] + amount[9], it[12] + amount[10]
  end
  local text = text_of(it)
  call('SET', KEYS[5 + i], text)
  answer[9 + i] = text
  gens = string.format(i == 1 and '%s%.0f' or '%s,%.0f', gens, it[1])
end
if holds then
  call('SET', KEYS[5], string.format('[%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,%.0f,0,0,0,0,0]\nheld\n%s\n%s]\n\n%s',
    index, nano, tokens, steps, tool_calls, amount[9], amount[10], now, owner, gens, ARGV[7]))
  call('ZADD', KEYS[3], now, ARGV[6])
end
return answer
