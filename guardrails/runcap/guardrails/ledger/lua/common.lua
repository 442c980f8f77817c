-- What every script begins with: is this the ledger the client knows, with all that was acknowledged to it?
--
-- KEYS  1 the namespace's meta hash  2 its owners; then those of the script
-- ARGV  1 the epoch the client knows  2 the highest number it has seen  3 its owner id  4 the number of its own last
--       write that was acknowledged to it (0: none to check)  5 is its sign of life due; then those of the script
--
-- Replies begin with a status, the number of the last write, the time in microseconds, the number of the owner's last
-- write. Numbers in replies and arguments of redis.call are exact up to 2^53, and so is struct (contact.lua sees
-- to it); in text they are written with %d, for tostring, .. and cjson.encode round at 14 digits.
local SCHEMA = 1
local call = redis.call
local epoch, seen, owner = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local clock = call('TIME')
local now = clock[1] * 1000000 + clock[2]
local own_name = 'seq:' .. owner
local meta = call('HMGET', KEYS[1], 'epoch', 'seq', 'schema', 'lost', own_name)
local seq, lost, own = tonumber(meta[2]) or 0, meta[4], tonumber(meta[5]) or 0
local due = ARGV[5] == '1'

local function reply(status) return {status, seq, now, own} end

if meta[1] ~= epoch or tonumber(meta[3]) ~= SCHEMA or seq < seen or own < tonumber(ARGV[4]) then
  -- Something acknowledged is gone. It is written down, so that the whole fleet is refused until somebody has looked.
  local function lose(why)
    lost = lost or why
    if seq < seen then seq = seen end
    call('HSET', KEYS[1], 'app', 'runcap', 'schema', SCHEMA, 'seq', seq, 'lost', lost)
  end

  if meta[3] and tonumber(meta[3]) ~= SCHEMA then
    return {'NEWER', seq, now, own, meta[3], SCHEMA}
  elseif not meta[1] then
    if call('EXISTS', KEYS[1]) == 1 then return {'FOREIGN', seq, now, own, KEYS[1]} end
    lose('all of it is gone')
    call('HSET', KEYS[1], 'epoch', epoch)
  elseif meta[1] ~= epoch then
    local former = call('HGET', KEYS[1], 'former') or ''
    if not string.find(' ' .. former .. ' ', ' ' .. epoch .. ' ', 1, true) then
      lose('it began anew while calls were under way')
      call('HSET', KEYS[1], 'former', former .. ' ' .. epoch)
    end
    return {'EPOCH', seq, now, own, meta[1]}
  elseif seq < seen or own < tonumber(ARGV[4]) then
    lose('the last writes are missing')
    if own < tonumber(ARGV[4]) then call('HSET', KEYS[1], own_name, ARGV[4]) end
  end
end
if due then call('ZADD', KEYS[2], now, owner) end

local function refuse_lost() return {'LOST', seq, now, own, lost} end

-- Something is written: counts it, also as the owner's, as long as there is a sign of life to forget it by.
local function commit()
  seq = seq + 1
  local text = string.format('%d', seq)
  if due or meta[5] then
    own = seq
    call('HSET', KEYS[1], 'seq', text, own_name, text)
  else
    call('HSET', KEYS[1], 'seq', text)
  end
end

-- An account is 20 numbers of 8 bytes, little end first, and then why it is stopped (JSON; nothing if it is not):
-- 1 generation, 2 calls in flight, 3-6 spent, 7-8 held, 9-10 unknown, 11-12 expected, 13-16 what top-ups added,
-- 17-20 the caps the last call came with (-1 is none).
local ACCOUNT = '<i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8i8'
local function account(key, text)
  text = text or call('GET', key) -- also where MGET found nothing: it passes over what is of another type
  if not text then return {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1, -1, stopped = '', given = ''} end
  return {stopped = string.sub(text, 161), given = string.sub(text, 129, 160), struct.unpack(ACCOUNT, text)}
end

-- As text. A new account gets a generation of its own, the number of this write, so commit() comes first: a hold on an
-- account that was closed is not charged to a later one of that name.
local function text_of(it)
  if it[1] == 0 then it[1] = seq end
  return struct.pack(ACCOUNT, unpack(it, 1, 20)) .. it.stopped
end

-- A hold is 13 such numbers (1 offer, 2-5 amount, 6-7 expected, 8 since when, 9-10 charged, 11-12 unknown, 13 how many
-- records it has) and lines of text: "held" or "unknown", its owner, the generations of its accounts (JSON), the id of
-- its last record; then what only the client reads: the ids of its accounts, and about (JSON).
local HOLD = '<i8i8i8i8i8i8i8i8i8i8i8i8i8'
