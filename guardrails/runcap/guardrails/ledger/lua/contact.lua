-- A client's first word. Begins the ledger where there is none; says where it is somebody else's.
--
-- KEYS  1 meta (hash)  2 owners  3 held  4 unknown  5 dead (zset)  6 usage (stream)  7 revised  8 verdicts (hash)
--       9 runs that have notes (list)
-- ARGV  1 the epoch the client expects ('': any)  2 the highest number it has seen  3 an epoch for a new ledger
local SCHEMA = 1
local TYPES = {'hash', 'zset', 'zset', 'zset', 'zset', 'stream', 'hash', 'hash', 'list'}
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
if struct.unpack('<i8', struct.pack('<i8', 2 ^ 53 - 1)) ~= 2 ^ 53 - 1 then
  return redis.error_reply('ERR this Redis does not count exactly, as one built for 32 bits does not')
end
local some
for i, key in ipairs(KEYS) do
  local kind = redis.call('TYPE', key)['ok']
  if kind ~= 'none' and kind ~= TYPES[i] then return {'FOREIGN', 0, now, 0, key} end
  if i > 1 and kind ~= 'none' then some = some or key end
end
local meta = redis.call('HMGET', KEYS[1], 'app', 'schema', 'epoch', 'seq', 'former')
if meta[1] == 'runcap' then
  if tonumber(meta[2]) ~= SCHEMA then return {'NEWER', 0, now, 0, meta[2], SCHEMA} end
  local beat = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')[2] -- what was written last was written about then
  return {'OK', tonumber(meta[4]), now, 0, meta[3], tonumber(beat) or 0, meta[5] or ''}
end
if redis.call('EXISTS', KEYS[1]) == 1 then return {'FOREIGN', 0, now, 0, KEYS[1]} end
if ARGV[1] ~= '' then
  redis.call('HSET', KEYS[1], 'app', 'runcap', 'schema', SCHEMA, 'epoch', ARGV[1], 'seq', ARGV[2],
    'lost', 'all of it is gone')
  return {'OK', tonumber(ARGV[2]), now, 0, ARGV[1], now, ''}
end
if some then return {'FOREIGN', 0, now, 0, some} end
redis.call('HSET', KEYS[1], 'app', 'runcap', 'schema', SCHEMA, 'epoch', ARGV[3], 'seq', 0)
return {'OK', 0, now, 0, ARGV[3], now, ''}
