-- KEYS  3 the account
local answer = reply('OK')
answer[5] = call('GET', KEYS[3])
return answer
