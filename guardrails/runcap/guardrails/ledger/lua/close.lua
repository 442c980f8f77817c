-- Ends an account that has no call in flight. Unknown rests know it by its generation, and pass over it once resolved.
--
-- KEYS  3 the account  4 its top-ups
local text = call('GET', KEYS[3])
if text and account(KEYS[3], text)[2] > 0 then
  local answer = reply('BUSY')
  answer[5] = text
  return answer
end
if call('DEL', KEYS[3], KEYS[4]) > 0 then commit() end
local answer = reply('OK')
answer[5] = text
return answer
