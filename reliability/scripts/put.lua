-- Put a message into a queue and ring.
-- KEYS  1 the queue's list  2 its bell  3… the queue's other lists
-- ARGV  1 message  2 milliseconds until the queue expires, 0 if it does not
redis.call('LPUSH', KEYS[1], ARGV[1])
if redis.call('LLEN', KEYS[2]) == 0 then
  redis.call('LPUSH', KEYS[2], 1)
  redis.call('EXPIRE', KEYS[2], 60)
end
if tonumber(ARGV[2]) > 0 then
  for i = 1, #KEYS do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
