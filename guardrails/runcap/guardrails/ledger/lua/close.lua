-- Ends an account. Holds on it know it by its generation, and pass over it when they end.
--
-- KEYS  3 the account  4 its top-ups
local text = call('GET', KEYS[3])
if call('DEL', KEYS[3], KEYS[4]) > 0 then commit() end
local answer = reply('OK')
answer[5] = text
return answer
