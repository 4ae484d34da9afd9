-- Let parked jobs that are due leave for another broker; they are kept here until it has them.
-- KEYS  1 parked hash  2 parked by due time  3 leaving hash  4 leaving by the time they left  5 corrupt list
--       6 leaving by when they were accepted
-- ARGV  1 most to let go  2 seconds after which whoever took a job is believed dead
-- Reply { milliseconds until the next parked job is due or -1, job id, item, job id, … }
local most, patience = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

-- A job's kind and since when it was parked are in the third line of its item (park.lua)
local function facts_of(item)
  return string.match(item or '', '^[^\n]*\n[^\n]*\n(%d+) ([^\n]+)\n')
end

-- What a dead worker was about to send comes back; if the job is parked anew, it was sent after all.
for _, id in ipairs(redis.call('ZRANGE', KEYS[4], '-inf', now - patience, 'BYSCORE', 'LIMIT', 0, 1000)) do
  local item, accepted = redis.call('HGET', KEYS[3], id), redis.call('ZSCORE', KEYS[6], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[3], id)
  redis.call('ZREM', KEYS[6], id)
  if item and redis.call('HSETNX', KEYS[1], id, item) == 1 then
    redis.call('ZADD', KEYS[2], now, id)
    local since, kind = facts_of(item)
    if kind then
      redis.call('ZADD', KEYS[1] .. ':of:' .. kind, accepted or since, id)
      redis.call('SADD', KEYS[1] .. ':kinds', kind)
    end
  end
end

local out = { -1 }
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], '-inf', now, 'BYSCORE', 'LIMIT', 0, most)) do
  local item = redis.call('HGET', KEYS[1], id)
  redis.call('ZREM', KEYS[2], id)
  redis.call('HDEL', KEYS[1], id)
  local _, kind = facts_of(item)
  local accepted = kind and redis.call('ZSCORE', KEYS[1] .. ':of:' .. kind, id)
  if accepted then redis.call('ZREM', KEYS[1] .. ':of:' .. kind, id) end
  if item and string.match(item, '^[^\n]+\n[^\n]*\n[^\n]*\n.') then
    redis.call('HSET', KEYS[3], id, item)
    redis.call('ZADD', KEYS[4], now, id)
    if accepted then redis.call('ZADD', KEYS[6], accepted, id) end
    out[#out + 1] = id
    out[#out + 1] = item
  elseif item then
    redis.call('LPUSH', KEYS[5], 'parked\n' .. item)
  end
end

local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
if first[2] then out[1] = math.max(0, math.ceil((tonumber(first[2]) - now) * 1000)) end
return out
