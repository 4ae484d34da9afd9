-- One change to one ramped replay, and to what it has under way.
-- KEYS  1 what every key of the replays begins with
-- ARGV  1 action  2 the run  3… by action:
--       begin: unix time, seconds to keep it, field, value…
--       send: revision, step, size of the step, cursor, 1 if nothing is left after it, letters passed over, paced until, id, facts as JSON…
--       ended: id, fingerprint or '', share of a step that may die     drop: id     heard: id, unix time
--       waits: for what, '' for nothing     close: state, why     resume: nothing
-- Reply 1 if anything changed; of ended the number of jobs that are still under way, -1 if it was none of them
local base, action, run = KEYS[1], ARGV[1], ARGV[2]
local runs, record, jobs = base .. 'all', base .. run, base .. run .. ':jobs'

local function get(...) return redis.call('HMGET', record, ...) end

local function set(...) redis.call('HSET', record, ...) end

local function add(field, count) return redis.call('HINCRBY', record, field, count) end

local function begin(at, seconds, ...)
  redis.call('ZREMRANGEBYSCORE', runs, '-inf', tonumber(at) - tonumber(seconds))
  redis.call('ZADD', runs, at, run)
  set('state', 'running', ...)
  redis.call('EXPIRE', record, seconds)
  return 1
end

local function close(state, why)
  if get('state')[1] ~= 'running' then return 0 end
  set('state', state, 'why', why, 'over_at', redis.call('TIME')[1], 'waits', '')
  return 1
end

-- What keeps it from going on, for those who look.
local function waits(for_what)
  if get('state')[1] ~= 'running' then return 0 end
  set('waits', for_what)
  return 1
end

-- Two drivers may be at it, after a crash: the one whose view is old sends nothing.
local function send(revision, step, size, cursor, exhausted, passed_over, paced_until, ...)
  local state, current, last = unpack(get('state', 'revision', 'step'))
  if state ~= 'running' or (current or '0') ~= revision then return 0 end
  local facts = { ... }
  add('revision', 1)
  add('passed_over', passed_over)
  set('cursor', cursor, 'exhausted', exhausted, 'paced_until', paced_until)
  if last ~= step then set('step', step, 'size', size, 'step_sent', 0, 'step_ended', 0, 'step_died', 0) end
  if #facts == 0 then return 1 end
  add('sent', #facts / 2)
  add('step_sent', #facts / 2)
  redis.call('HSET', jobs, unpack(facts))
  redis.call('EXPIRE', jobs, redis.call('TTL', record))
  return 1
end

-- What ends a run ends it here, with the end that shows it: nobody sends more on the strength of what was true before.
local function ended(id, fingerprint, share)
  local told = redis.call('HGET', jobs, id)
  if not told then return -1 end
  redis.call('HDEL', jobs, id)
  local all, in_step, size = add('ended', 1), add('step_ended', 1), tonumber(get('size')[1])
  if fingerprint ~= '' then
    local died = add('died', 1)
    local died_in_step = add('step_died', 1)
    add('cause:' .. fingerprint, 1)
    if fingerprint == cjson.decode(told).fingerprint then
      add('returned', 1)
      close('stopped', 'the failure came back: ' .. died .. ' of the ' .. all .. ' jobs that have ended died')
    elseif died_in_step > tonumber(share) * size then
      close('stopped', 'too many died of something else: ' .. died_in_step .. ' of the last ' .. in_step .. ' that have ended')
    end
  end
  if in_step >= size then set('step_ended', 0, 'step_died', 0) end -- the next ones are judged by themselves
  return redis.call('HLEN', jobs)
end

local function drop(id)
  if redis.call('HDEL', jobs, id) == 0 then return 0 end
  add('sent', -1)
  add('step_sent', -1)
  return add('passed_over', 1) and 1
end

local function heard(id, at)
  local told = redis.call('HGET', jobs, id)
  if not told then return 0 end
  local facts = cjson.decode(told)
  facts.heard_at = tonumber(at)
  redis.call('HSET', jobs, id, cjson.encode(facts))
  return 1
end

local function resume()
  local state = get('state')[1]
  if not state or state == 'running' then return 0 end
  -- Who is still under way ends by itself; whether well is not what the next steps are judged by.
  add('unheard', redis.call('HLEN', jobs))
  redis.call('DEL', jobs)
  add('revision', 1)
  redis.call('HDEL', record, 'over_at')
  set('state', 'running', 'why', '', 'step', 0, 'size', 1, 'step_sent', 0, 'step_ended', 0, 'step_died', 0)
  return 1
end

local actions = { begin = begin, send = send, ended = ended, drop = drop, heard = heard, waits = waits, close = close, resume = resume }
return actions[action](unpack(ARGV, 3))
