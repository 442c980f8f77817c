-- The runs that have notes, in the order of their first: a page of them.
--
-- KEYS  3 the runs that have notes     ARGV  6 how many to pass over  7 how many to give
local answer = reply('OK')
answer[5] = call('LRANGE', KEYS[3], ARGV[6], ARGV[6] + ARGV[7] - 1)
return answer
