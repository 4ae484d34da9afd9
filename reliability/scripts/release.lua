-- Let a parked job come back at another time, and ring if that is now.
-- KEYS  1 parked hash  2 parked by due time
-- ARGV  1 job id  2 due, unix seconds  3 '1' if it goes to the front of its queue: to the list of the most urgent
-- What a worker has just taken must not come back a second time.
if not redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 0 end
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[1])

local item = redis.call('HGET', KEYS[1], ARGV[1]) or ''
local queue, rest = string.match(item, '^([^\n]-)\6\22[^\n]*(\n.*)$') -- kombu's separator before a priority
if queue and ARGV[3] == '1' then redis.call('HSET', KEYS[1], ARGV[1], queue .. rest) end

local bell = string.match(item, '^[^\n]*\n([^\n]+)\n')
if bell and tonumber(ARGV[2]) <= tonumber(redis.call('TIME')[1]) and redis.call('LLEN', bell) == 0 then
  redis.call('LPUSH', bell, 1)
  redis.call('EXPIRE', bell, 60)
end
return 1
