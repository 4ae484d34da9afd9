-- Keep a message until its time comes. The same job parked twice is one job: its later word counts.
-- KEYS  1 parked hash  2 parked by due time
-- ARGV  1 job id  2 due, unix seconds  3 list key  4 bell key  5 message
local id, list, message = ARGV[1], ARGV[3], ARGV[5]

-- list key, task and body: what makes two messages of one id the same job
local function job_in(item)
  local where, raw = string.match(item, '^([^\n]*)\n[^\n]*\n[^\n]*\n(.*)$')
  local ok, read = pcall(cjson.decode, raw)
  if not ok or type(read) ~= 'table' or type(read.headers) ~= 'table' then return nil end
  return where .. '\n' .. tostring(read.headers.task) .. '\n' .. tostring(read.body)
end

local since = redis.call('TIME')[1]
local item = list .. '\n' .. ARGV[4] .. '\n' .. since .. '\n' .. message
local known = redis.call('HGET', KEYS[1], id)
if known and job_in(known) ~= job_in(item) then -- another message that borrowed the id: keep both
  id = id .. ':' .. redis.sha1hex(job_in(item) or message)
end
redis.call('HSET', KEYS[1], id, item)
redis.call('ZADD', KEYS[2], ARGV[2], id)
