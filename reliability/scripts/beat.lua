-- A worker says that it still holds these messages, and learns which ones nobody has vouched for in time.
-- KEYS  1 unacked index  2 when anybody last beat, and since when somebody has
-- ARGV  1 seconds between two beats  2 beats a message may miss  3 most to name  4… delivery tags held
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local beat = tonumber(ARGV[1])

for i = 4, #ARGV do
  -- remove, then add: what is gone stays gone, and a Redis at its memory limit does not refuse
  if redis.call('ZREM', KEYS[1], ARGV[i]) == 1 then redis.call('ZADD', KEYS[1], now, ARGV[i]) end
end

-- After a time without any beat (Redis was away) the living have two beats to come back and vouch.
local last, since = string.match(redis.call('GET', KEYS[2]) or '0 0', '^(%S+) (%S+)$')
if not last or now - tonumber(last) > 2.5 * beat then since = now end
redis.call('DEL', KEYS[2])
redis.call('SET', KEYS[2], string.format('%.3f %.3f', now, since))
if now - tonumber(since) < 2 * beat then return {} end
return redis.call('ZRANGE', KEYS[1], '-inf', now - tonumber(ARGV[2]) * beat, 'BYSCORE', 'LIMIT', 0, ARGV[3])
