-- KEYS  3 verdicts     ARGV  6 run id  7 verdict
call('HSET', KEYS[3], ARGV[6], ARGV[7])
commit()
return reply('OK')
