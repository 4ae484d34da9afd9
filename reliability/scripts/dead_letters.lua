-- One change to one dead letter and to every index it stands in.
-- A letter is its body, which never changes, and its mark: a flat object of what changes and of where it is filed.
-- KEYS  1 what every key of the store begins with
-- ARGV  1 action  2 message id  3… by action:
--       bury: body, failed_at, task, error type, fingerprint, replays, compensation
--       settle: state, by whom, note, replays ('' for a state that is no replay)     compensate: state, replays of the run it is about or ''
-- Reply 1 if anything changed
local base, action, id = KEYS[1], ARGV[1], ARGV[2]
local letters, marks, groups, tasks, owed = base .. 'letters', base .. 'marks', base .. 'groups', base .. 'tasks', base .. 'owed'

local function read()
  local mark = redis.call('HGET', marks, id)
  return mark and cjson.decode(mark)
end

local function write(mark)
  redis.call('HSET', marks, id, cjson.encode(mark))
end

local function places(mark)
  local state = base .. mark.state
  return { state, state .. ':task:' .. mark.task, state .. ':type:' .. mark.type, state .. ':fingerprint:' .. mark.fingerprint }
end

local function file(mark)
  for _, place in ipairs(places(mark)) do redis.call('ZADD', place, mark.failed_at, id) end
  if mark.state == 'open' then
    redis.call('ZINCRBY', groups, 1, mark.fingerprint)
    redis.call('ZINCRBY', tasks, 1, mark.task)
  end
end

local function unfile(mark)
  for _, place in ipairs(places(mark)) do redis.call('ZREM', place, id) end
  if mark.state == 'open' then
    redis.call('ZINCRBY', tasks, -1, mark.task)
    if tonumber(redis.call('ZINCRBY', groups, -1, mark.fingerprint)) <= 0 then redis.call('ZREM', groups, mark.fingerprint) end
  end
end

local CONFIRMED_WITHIN = 3600 -- what was sent and is not confirmed is owed again: sent twice, it has one effect

-- By the time from which somebody has to see to it.
local function owe(compensation)
  local now = tonumber(redis.call('TIME')[1])
  if compensation == 'needed' then
    redis.call('ZADD', owed, now, id)
  elseif compensation == 'sent' then
    redis.call('ZADD', owed, now + CONFIRMED_WITHIN, id)
  else
    redis.call('ZREM', owed, id)
  end
end

local function bury(body, failed_at, task, error_type, fingerprint, replays, compensation)
  local old = read()
  replays = tonumber(replays)
  if old and replays <= old.replays then
    -- The same death told twice. A settled letter opens again all the same, unless it is the very same moment.
    if old.state == 'open' or old.failed_at == failed_at then return 0 end
    replays = old.replays
  end
  local mark = {
    state = 'open', failed_at = failed_at, task = task, type = error_type, fingerprint = fingerprint,
    replays = replays, compensation = compensation, at = '', by = '', note = '',
  }
  -- A full Redis refuses the first write or none: nothing is taken out of an index before.
  redis.call('HSET', letters, id, body)
  write(mark)
  if old then unfile(old) end
  file(mark)
  owe(compensation)
  redis.call('HINCRBY', base .. 'total', task .. '\n' .. error_type, 1)
  return 1
end

local function settle(state, by, note, replays)
  local mark = read()
  if not mark then return 0 end
  replays = tonumber(replays)
  -- It was discarded, or replayed by somebody else, or it has died again before its replay was noted.
  if replays and replays <= mark.replays or not replays and mark.state ~= 'open' then return 0 end
  local old = { state = mark.state, task = mark.task, type = mark.type, fingerprint = mark.fingerprint }
  mark.state, mark.by, mark.note, mark.at = state, by, note, redis.call('TIME')[1]
  if replays then mark.replays = replays end
  write(mark)
  unfile(old)
  file(mark)
  return 1
end

local function compensate(state, of)
  local mark = read()
  -- The confirmation may be faster than the note that it was sent.
  if not mark or state == 'sent' and mark.compensation == 'done' then return 0 end
  -- It is about an earlier death than the one that waits for its own.
  if mark.state == 'open' and of ~= '' and tonumber(of) < mark.replays then return 0 end
  if mark.compensation == state and state ~= 'sent' then return 0 end
  mark.compensation = state
  write(mark)
  owe(state)
  return 1
end

local actions = { bury = bury, settle = settle, compensate = compensate }
return actions[action](unpack(ARGV, 3))
