-- Keep a message until its time comes. The same job parked twice is one job: its later word counts.
-- KEYS  1 parked hash  2 parked by due time
-- ARGV  1 job id  2 due, unix seconds  3 list key  4 bell key  5 message  6 its kind: service, space, reason, and of a held one colon, hold  7 when it was accepted, unix seconds
local id, list, message, kind = ARGV[1], ARGV[3], ARGV[5], ARGV[6] or 'none Scheduled'

-- list key, task and body: what makes two messages of one id the same job
local function job_in(item)
  local where, raw = string.match(item, '^([^\n]*)\n[^\n]*\n[^\n]*\n(.*)$')
  local ok, read = pcall(cjson.decode, raw)
  if not ok or type(read) ~= 'table' or type(read.headers) ~= 'table' then return nil end
  return where .. '\n' .. tostring(read.headers.task) .. '\n' .. tostring(read.body)
end

local since = redis.call('TIME')[1]
local item = list .. '\n' .. ARGV[4] .. '\n' .. since .. ' ' .. kind .. '\n' .. message
local known = redis.call('HGET', KEYS[1], id)
if known and job_in(known) ~= job_in(item) then -- another message that borrowed the id: keep both
  id = id .. ':' .. redis.sha1hex(job_in(item) or message)
  known = redis.call('HGET', KEYS[1], id)
end
redis.call('HSET', KEYS[1], id, item)
redis.call('ZADD', KEYS[2], ARGV[2], id)

-- By its kind as well, so that nobody has to go through all of them to count some
local before = known and string.match(known, '^[^\n]*\n[^\n]*\n%d+ ([^\n]+)\n')
if before and before ~= kind then redis.call('ZREM', KEYS[1] .. ':of:' .. before, id) end
redis.call('ZADD', KEYS[1] .. ':of:' .. kind, ARGV[7] or since, id)
if redis.call('SADD', KEYS[1] .. ':kinds', kind) == 1 then -- rare, as holds are: forget those that nothing waits for
  for _, name in ipairs(redis.call('SMEMBERS', KEYS[1] .. ':kinds')) do
    if string.find(name, ':', 1, true) and redis.call('EXISTS', KEYS[1] .. ':of:' .. name) == 0 then
      redis.call('SREM', KEYS[1] .. ':kinds', name)
    end
  end
end
