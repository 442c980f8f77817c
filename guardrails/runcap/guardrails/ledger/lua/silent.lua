-- Which of these owners gave no sign of life for long. One from the future is none: the clock went back.
--
-- ARGV  6 microseconds, then the owners
local silent = {}
for i = 7, #ARGV do
  local beat = tonumber(call('ZSCORE', KEYS[2], ARGV[i]) or 0)
  if math.abs(now - beat) > tonumber(ARGV[6]) then silent[#silent + 1] = ARGV[i] end
end
local answer = reply('OK')
answer[5] = silent
return answer
