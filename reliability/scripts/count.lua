-- Add what one process has counted, once: a batch whose answer was lost comes again under its number.
-- KEYS  1 hash of all counts  2 number of this process's last batch
-- ARGV  1 number of this batch  2 seconds to remember it  3… what was counted, how often…
if tonumber(redis.call('GET', KEYS[2]) or 0) >= tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'EX', ARGV[2])
for i = 3, #ARGV, 2 do redis.call('HINCRBY', KEYS[1], ARGV[i], ARGV[i + 1]) end
return 1
