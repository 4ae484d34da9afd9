-- One visit of a worker to the broker: acknowledge what is done, move what is due, take what there is room for.
-- KEYS  1 unacked hash  2 unacked index  3 parked hash  4 parked by due time  5 corrupt list  6 tag of the last suspect
--       7… the suspects of each queue, then the lists of each queue, the most urgent first
-- ARGV  1 room  2 most to move  3 number of queues  4 what this worker can do for a suspect: 'alone', 'makes room', 'busy'
--       5 number of acks, then the acks, then for each list of a queue: queue name, bell key, '1' if it needs no ack
-- Reply { milliseconds until the next parked job is due or -1, 1 if a suspect waits for a worker else 0, queue name, delivery tag, message, queue name, … }
-- Redis at its memory limit refuses commands that add, but not after one that removes: here that one always comes first.
local room, move_at_most, queues, readiness, acked = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000

local function ring(bell)
  if redis.call('LLEN', bell) == 0 then
    redis.call('LPUSH', bell, 1)
    redis.call('EXPIRE', bell, 60)
  end
end

if acked > 0 then
  local tags = {}
  for i = 1, acked do tags[i] = ARGV[5 + i] end
  redis.call('ZREM', KEYS[2], unpack(tags))
  redis.call('HDEL', KEYS[1], unpack(tags))
end

local function move(id, item)
  -- list key, bell key, parked since and its kind, message: one line each; the message holds no raw line break
  local list, bell, parked, message = string.match(item, '^([^\n]*)\n([^\n]*)\n([^\n]*)\n(.*)$')
  local kind = parked and string.match(parked, ' (.+)$')
  if kind then redis.call('ZREM', KEYS[3] .. ':of:' .. kind, id) end
  if not list or type(redis.pcall('LPUSH', list, message)) == 'table' then -- a table is an error: the key is no list
    redis.call('LPUSH', KEYS[5], 'parked\n' .. item)
  else
    ring(bell)
  end
end

for _, id in ipairs(redis.call('ZRANGE', KEYS[4], '-inf', now, 'BYSCORE', 'LIMIT', 0, move_at_most)) do
  local item = redis.call('HGET', KEYS[3], id)
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[3], id)
  if item then move(id, item) end
end

local function tag_of(raw)
  local ok, message = pcall(cjson.decode, raw)
  if not ok or type(message) ~= 'table' or type(message.properties) ~= 'table' then return nil end
  local properties = message.properties
  local whole = type(properties.delivery_info) == 'table' and type(message.headers) == 'table' and type(message.body) == 'string'
  return whole and type(properties.delivery_tag) == 'string' and properties.delivery_tag or nil
end

local first = redis.call('ZRANGE', KEYS[4], 0, 0, 'WITHSCORES')
local out = { first[2] and math.max(0, math.ceil((tonumber(first[2]) - now) * 1000)) or -1, 0 }

local function take(raw, queue, no_ack)
  local tag = tag_of(raw)
  if not tag then
    redis.call('LPUSH', KEYS[5], queue .. '\n' .. raw)
    return nil
  end
  if redis.call('HEXISTS', KEYS[1], tag) == 1 then -- one message sent to two queues: neither ack may stand for both
    tag = redis.sha1hex(tag .. queue .. clock[1] .. clock[2] .. #out)
  end
  if not no_ack then
    -- kombu's own shape [message, exchange, routing key]: no exchange and the queue's name leads straight back
    redis.call('HSET', KEYS[1], tag, '[' .. raw .. ',"",' .. cjson.encode(queue) .. ']')
    redis.call('ZADD', KEYS[2], now, tag)
  end
  out[#out + 1] = queue
  out[#out + 1] = tag
  out[#out + 1] = raw
  room = room - 1
  return tag
end

-- A suspect has been with workers that died. It is run by a worker that holds nothing else, which
-- takes nothing more meanwhile: if that dies, too, it was the suspect. All others go on, so that
-- one suspect at a time costs one worker at most.
local function suspect()
  local at, lists_each = 6 + acked, (#KEYS - 6 - queues) / queues
  for i = 7, 6 + queues do
    local raw = redis.pcall('RPOP', KEYS[i])
    while type(raw) == 'string' do
      local tag = take(raw, ARGV[at], ARGV[at + 2] == '1')
      if tag then return tag end -- else it was no message
      raw = redis.pcall('RPOP', KEYS[i])
    end
    at = at + 3 * lists_each
  end
  return nil
end

if room > 0 and redis.call('EXISTS', unpack(KEYS, 7, 6 + queues)) > 0 then
  local last = redis.call('GET', KEYS[6])
  if not last or redis.call('HEXISTS', KEYS[1], last) == 0 then -- it has ended, or went back
    local tag = readiness == 'alone' and suspect()
    if tag then
      redis.call('SET', KEYS[6], tag)
    else
      out[2] = 1
    end
    if tag or readiness == 'makes room' then room = 0 end
  end
end

local at = 6 + acked
for i = 7 + queues, #KEYS do
  while room > 0 do
    local raw = redis.pcall('RPOP', KEYS[i])
    if type(raw) ~= 'string' then break end -- empty, or no list at all
    take(raw, ARGV[at], ARGV[at + 2] == '1')
  end
  at = at + 3
end
if room == 0 and #out > 2 then -- the ring was ours, but others may have room for the rest
  at = 6 + acked
  for i = 7 + queues, #KEYS do
    if redis.pcall('EXISTS', KEYS[i]) == 1 then ring(ARGV[at + 1]) end
    at = at + 3
  end
end
return out
