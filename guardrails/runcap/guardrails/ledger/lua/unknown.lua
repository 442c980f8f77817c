-- KEYS  3 unknown
local answer = reply('OK')
answer[5] = call('ZRANGE', KEYS[3], 0, -1)
return answer
