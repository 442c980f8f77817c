-- The notes of runs.
--
-- KEYS  from 3: the notes of each
local answer = reply('OK')
for i = 3, #KEYS do answer[i + 2] = call('HGETALL', KEYS[i]) end
return answer
