-- Holds as they stand, each with the last record of its call and the verdict on its run.
--
-- KEYS  3 usage  4 verdicts, then the holds
local answer = reply('OK')
for i = 5, #KEYS do
  local text = call('GET', KEYS[i])
  local record = text and string.match(text, '^.-\n.-\n.-\n(.-)\n', 105)
  local entry = record and record ~= '' and call('XRANGE', KEYS[3], record, record)[1]
  answer[i] = {text, entry or false, entry and call('HGET', KEYS[4], entry[2][4]) or false}
end
return answer
