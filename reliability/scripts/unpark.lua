-- Take a parked job out for good.
-- KEYS  1 parked hash  2 parked by due time
-- ARGV  1 job id
-- Reply { due, what was parked }, or nothing if it does not wait (any more)
local due, item = redis.call('ZSCORE', KEYS[2], ARGV[1]), redis.call('HGET', KEYS[1], ARGV[1])
if not due or not item then return false end
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('HDEL', KEYS[1], ARGV[1])
local kind = string.match(item, '^[^\n]*\n[^\n]*\n%d+ ([^\n]+)\n')
if kind then redis.call('ZREM', KEYS[1] .. ':of:' .. kind, ARGV[1]) end
return { due, item }
