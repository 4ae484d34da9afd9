-- Give one unacknowledged message back, unless somebody has just acknowledged or restored it.
-- KEYS  1 unacked hash  2 unacked index  3 list  4 its bell if it has one, and so on for each list it belongs in
-- ARGV  1 delivery tag  2 message  3 'LPUSH' or 'RPUSH'  4 seconds since anybody may have vouched for it, 0 if it is our own to give
-- Reply 1 if it was given back
local silence = tonumber(ARGV[4])
if silence > 0 then
  -- Another worker may have given it back since we heard of it, and a third may work on it now.
  local clock = redis.call('TIME')
  local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
  local vouched = redis.call('ZSCORE', KEYS[2], ARGV[1])
  if not vouched or now - tonumber(vouched) < silence then return 0 end
end
redis.call('ZREM', KEYS[2], ARGV[1])
if redis.call('HDEL', KEYS[1], ARGV[1]) == 0 then return 0 end
for i = 3, #KEYS, 2 do
  redis.call(ARGV[3], KEYS[i], ARGV[2])
  if KEYS[i + 1] and redis.call('LLEN', KEYS[i + 1]) == 0 then
    redis.call('LPUSH', KEYS[i + 1], 1)
    redis.call('EXPIRE', KEYS[i + 1], 60)
  end
end
return 1
