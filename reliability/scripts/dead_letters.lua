-- One change to one dead letter and to every index it stands in.
-- A letter is its body, which never changes, and its mark: a flat object of what changes and of where it is filed.
-- KEYS  1 what every key of the store begins with
-- ARGV  1 action  2 message id  3… by action:
--       bury: body, failed_at, task, error type, fingerprint, replays, compensation, release, edits (JSON) or '', run: replays as the job itself counts them
--       settle: state, by whom, note, replays ('' for a state that is no replay)     compensate: state, replays of the run it is about or ''     put_off: nothing
--       amend: mark as it was read, edits (JSON)     forget: mark as it was read
-- Reply 1 if anything changed
local base, action, id = KEYS[1], ARGV[1], ARGV[2]
local letters, marks, tasks, owed, verdicts = base .. 'letters', base .. 'marks', base .. 'tasks', base .. 'owed', base .. 'verdicts'

local function read()
  local mark = redis.call('HGET', marks, id)
  return mark and cjson.decode(mark)
end

local function write(mark)
  redis.call('HSET', marks, id, cjson.encode(mark))
end

local function places(mark)
  local state = base .. mark.state
  return {
    state, state .. ':task:' .. mark.task, state .. ':type:' .. mark.type, state .. ':fingerprint:' .. mark.fingerprint,
    state .. ':both:' .. mark.task .. '\n' .. mark.type, -- few of one and many of the other would be a long search
  }
end

local function file(mark)
  for _, place in ipairs(places(mark)) do redis.call('ZADD', place, mark.failed_at, id) end
  redis.call('ZINCRBY', base .. mark.state .. ':groups', 1, mark.fingerprint)
  if mark.state == 'open' then redis.call('ZINCRBY', tasks, 1, mark.task) end
end

local function unfile(mark)
  for _, place in ipairs(places(mark)) do redis.call('ZREM', place, id) end
  local groups = base .. mark.state .. ':groups'
  if tonumber(redis.call('ZINCRBY', groups, -1, mark.fingerprint)) <= 0 then redis.call('ZREM', groups, mark.fingerprint) end
  if mark.state == 'open' then redis.call('ZINCRBY', tasks, -1, mark.task) end
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

-- What a person has said about a cause, as long as that holds.
local function verdict_on(fingerprint)
  local text = redis.call('HGET', verdicts, fingerprint)
  local verdict = text and cjson.decode(text)
  if not verdict or verdict.regression then return nil end
  local expires = verdict['until']
  if expires ~= '' and tonumber(expires) <= tonumber(redis.call('TIME')[1]) then return nil end
  return verdict
end

local function numbers(version)
  local found = {}
  for number in (version:match('^v?([%d.]+)$') or version:match('^v?([%d.]+)[-+]') or ''):gmatch('%d+') do
    found[#found + 1] = tonumber(number)
  end
  return found
end

-- Whether a death was before a fix: in an earlier release, both like v1.12.0. A release that cannot be compared is told by the time:
-- what died before the word was given, and was spooled or is imported, was known to whoever gave it.
local function is_before(release, failed_at, fix)
  local mine, other = numbers(release), numbers(fix.version)
  if #mine == 0 then return tonumber(failed_at) < tonumber(fix.at) end
  for n = 1, math.max(#mine, #other) do
    if (mine[n] or 0) ~= (other[n] or 0) then return (mine[n] or 0) < (other[n] or 0) end
  end
  return false
end

local function bury(body, failed_at, task, error_type, fingerprint, replays, compensation, release, edits, run)
  local old = read()
  replays = tonumber(replays)
  if old and replays <= old.replays then
    -- The same death told twice. A settled letter opens again all the same, unless it is the very same moment.
    if old.state == 'open' or old.failed_at == failed_at then return 0 end
    replays = old.replays
  end
  local mark = {
    state = 'open', failed_at = failed_at, task = task, type = error_type, fingerprint = fingerprint,
    replays = replays, run = tonumber(run), compensation = compensation, at = '', by = '', note = '',
    edits = edits ~= '' and edits or old and old.edits or nil, -- those of the call that died are in its body
  }
  local verdict = verdict_on(fingerprint)
  if verdict and verdict.state == 'ignored' then
    mark.state, mark.at, mark.by, mark.note = 'discarded', redis.call('TIME')[1], verdict.by, verdict.note
  end
  -- A full Redis refuses the first write or none: nothing is taken out of an index before.
  redis.call('HSET', letters, id, body)
  write(mark)
  if old then unfile(old) end
  file(mark)
  owe(compensation)
  redis.call('HINCRBY', base .. 'total', task .. '\n' .. error_type, 1)
  if verdict and verdict.state == 'fixed' and not is_before(release, failed_at, verdict) then
    verdict.regression = true
    redis.call('HSET', verdicts, fingerprint, cjson.encode(verdict))
  end
  return 1
end

local function settle(state, by, note, replays)
  local mark = read()
  if not mark then return 0 end
  replays = tonumber(replays)
  -- A quick job has ended well before its sender could say so: what is missing is who that was.
  if replays and replays == mark.replays and mark.state == 'replayed' and mark.by == '' and by ~= '' then
    mark.by, mark.note = by, note
    write(mark)
    return 1
  end
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
  if not mark or state == 'sent' and (mark.compensation == 'done' or mark.compensation == 'failed') then return 0 end
  -- It is about an earlier death than the one that waits for its own. Whoever sends a job anew under its old id counts from the start.
  if mark.state == 'open' and of ~= '' and tonumber(of) < (mark.run or mark.replays) then return 0 end
  if mark.compensation == state and state ~= 'sent' then return 0 end
  mark.compensation = state
  write(mark)
  owe(state)
  return 1
end

-- What cannot be sent now must not keep others from it: it is looked at again with what was never confirmed.
local function put_off()
  return redis.call('ZADD', owed, 'XX', 'CH', redis.call('TIME')[1] + CONFIRMED_WITHIN, id)
end

-- Edits are text to us: our JSON makes a list without elements an object.
local function amend(as_read, edits)
  if redis.call('HGET', marks, id) ~= as_read then return 0 end
  local mark = read()
  mark.edits, mark.edited = edits, true
  write(mark)
  return 1
end

local function forget(as_read)
  if redis.call('HGET', marks, id) ~= as_read then return 0 end
  unfile(read()) -- its first write frees memory, so a full Redis takes the others, too
  redis.call('ZREM', owed, id)
  redis.call('HDEL', letters, id)
  redis.call('HDEL', marks, id)
  return 1
end

local actions = { bury = bury, settle = settle, compensate = compensate, put_off = put_off, amend = amend, forget = forget }
return actions[action](unpack(ARGV, 3))
