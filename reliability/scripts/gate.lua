-- Everything that is decided about one upstream, each in one step and by one clock: Redis's own.
-- KEYS  1 the gate's hash
-- ARGV  1 action  2 limits as JSON  3 subject, '' for the whole service  4 waiting jobs  5 jitter 0…1  6, 7 by action:
--       admit: digest of the credential or ''     success, failure: number of the probe or 0
--       limited: number of the probe, seconds to wait     pause: by whom, note     hold: digest, note     resume, reset: nothing
local gate, action, limits = KEYS[1], ARGV[1], cjson.decode(ARGV[2])
local subject, waiting, jitter = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
local held_field, blocked_field = 'held:' .. subject, 'blocked:' .. subject
local names = {
  'empty_at', 'tail', 'tail_again', 'failures', 'broken_since', 'open_until', 'successes', 'probe', 'probe_until',
  'paused_since', 'paused_by', 'paused_note', 'blocked:', blocked_field, held_field,
}
local field = {}
for i, value in ipairs(redis.call('HMGET', gate, unpack(names))) do field[names[i]] = value end

local interval = 1 / limits.rate
local tolerance = (limits.burst - 1) * interval
local SET_BACK = 60 -- a clock that differs by less than a minute is only a little wrong

local function text(seconds) return string.format('%.6f', seconds) end

-- A time further ahead than we ever write means that the clock was set back: then it is no more to be trusted.
local function time(name, furthest)
  local at = tonumber(field[name] or 0)
  if at > now + furthest + SET_BACK then return 0 end
  return at
end

local function blocked_until()
  return math.max(time('blocked:', limits.longest_block), time(blocked_field, limits.longest_block))
end

-- The moment at which the bucket will be empty again, if nobody calls before.
local function empty_at()
  local at = tonumber(field.empty_at or 0)
  local furthest = math.max(now, time('blocked:', limits.longest_block)) + tolerance + interval + limits.max_wait + SET_BACK
  if at > furthest then return now + tolerance end
  return math.max(at, now)
end

-- The seconds after which the first of the waiting jobs comes back: not before the gate can open, and behind all who stand in that line.
local function line_up(opening, line)
  local place = math.max(opening, tonumber(field[line] or 0))
  if place > opening + limits.longest_line then place = opening end -- a second lap instead of an absurd wait
  redis.call('HSET', gate, line, text(place + waiting * limits.spacing))
  return text(place - now + jitter * limits.spacing)
end

-- What stops one subject of many must not move the line of the others.
local function back_at(opening, whole_service)
  if whole_service then return line_up(opening, 'tail') end
  return text(opening - now + jitter * limits.spacing)
end

local function refuse_by_hand(digest)
  local held = field[held_field]
  if held and digest ~= '' then
    if string.sub(held, 1, #digest) == digest then
      return { 'held', back_at(now + limits.recheck, subject == ''), held }
    end
    redis.call('HDEL', gate, held_field) -- the credential has changed: the hold is over
    if subject == '' then
      redis.call('HDEL', gate, 'tail', 'tail_again')
      field.tail, field.tail_again = false, false
    end
  end
  if field.paused_since then
    return { 'paused', line_up(now + limits.recheck, 'tail'), field.paused_since, field.paused_by, field.paused_note }
  end
end

local function refuse_by_upstream()
  local blocked = blocked_until()
  if blocked > now then
    return { 'blocked', back_at(blocked, blocked == time('blocked:', limits.longest_block)), text(blocked) }
  end
  if field[blocked_field] and subject ~= '' then redis.call('HDEL', gate, blocked_field) end
  local open_until = time('open_until', limits.reset_timeout)
  if field.broken_since and open_until > now then
    return { 'open', line_up(open_until, 'tail'), field.broken_since, text(open_until) }
  end
  local probe_until = time('probe_until', limits.lease)
  if field.broken_since and probe_until > now then
    -- Their places in the long line are used up. Behind its end they would come back last, and the budget of the probes' time
    -- would be lost: in a line of their own they come between the others, and the bucket, full by now, bears it.
    return { 'probing', line_up(math.min(probe_until, now + limits.probe_recheck), 'tail_again'), field.broken_since }
  end
end

local function admit(digest)
  local refusal = refuse_by_hand(digest) or refuse_by_upstream()
  if refusal then return refusal end
  local empty = empty_at()
  local wait = math.max(0, empty - tolerance - now)
  if wait > limits.max_wait then
    -- Half of what a thread may wait before the permit is due, so that a slow way back still finds it.
    return { 'spent', line_up(now + wait - limits.max_wait / 2, 'tail'), text(wait) }
  end
  local probe = 0
  if field.broken_since then
    probe = tonumber(field.probe or 0) + 1
    redis.call('HSET', gate, 'empty_at', text(empty + interval), 'probe', probe, 'probe_until', text(now + wait + limits.lease))
  else
    redis.call('HSET', gate, 'empty_at', text(empty + interval))
  end
  return { 'admitted', text(wait), probe, (field.broken_since or field.failures) and 0 or 1 }
end

local function is_current(probe)
  return field.probe_until and tonumber(probe) == tonumber(field.probe)
end

-- The reports return what became of the breaker, and the seconds to come back in.
local function success(probe)
  local breaker = ''
  if not field.broken_since then
    redis.call('HDEL', gate, 'failures')
  elseif is_current(probe) then -- the word of a call from before the break counts for nothing
    local successes = tonumber(field.successes or 0) + 1
    if successes >= limits.success_threshold then
      redis.call('HDEL', gate, 'broken_since', 'open_until', 'successes', 'probe_until', 'failures')
      breaker = 'closed'
    else
      redis.call('HSET', gate, 'successes', successes)
      redis.call('HDEL', gate, 'probe_until')
    end
  end
  return { breaker, '0' }
end

local function failure(probe)
  local open_until = text(now + limits.reset_timeout)
  if field.broken_since then
    if not is_current(probe) then return { '', '0' } end
    redis.call('HSET', gate, 'open_until', open_until)
    redis.call('HDEL', gate, 'successes', 'probe_until')
    return { 'reopened', '0' }
  end
  local failures = tonumber(field.failures or 0) + 1
  if failures < limits.failure_threshold then
    redis.call('HSET', gate, 'failures', failures)
    return { '', '0' }
  end
  redis.call('HSET', gate, 'broken_since', text(now), 'open_until', open_until)
  redis.call('HDEL', gate, 'failures', 'successes', 'probe_until')
  return { 'opened', '0' }
end

local function limited(probe, asked)
  local breaker = success(probe)[1] -- an upstream that counts our calls is alive
  local free = now
  if asked > 0 then
    free = math.max(blocked_until(), now + math.min(asked, limits.longest_block))
    redis.call('HSET', gate, blocked_field, text(free))
  end
  if subject ~= '' then return { breaker, back_at(math.max(free, now + interval), false) } end
  local empty = math.max(empty_at(), free + tolerance + interval)
  redis.call('HSET', gate, 'empty_at', text(empty))
  return { breaker, line_up(empty - tolerance, 'tail') }
end

local function pause(by, note)
  redis.call('HSET', gate, 'paused_by', by, 'paused_note', note)
  return redis.call('HSETNX', gate, 'paused_since', text(now))
end

local function resume()
  redis.call('HDEL', gate, 'tail', 'tail_again')
  return redis.call('HDEL', gate, 'paused_since', 'paused_by', 'paused_note') > 0 and 1 or 0
end

local function hold(digest, note)
  local held = field[held_field]
  if held and string.sub(held, 1, #digest) == digest then return 0 end
  redis.call('HSET', gate, held_field, digest .. ' ' .. text(now) .. ' ' .. note)
  return 1
end

local function reset()
  for _, name in ipairs(redis.call('HKEYS', gate)) do
    if string.find(name, '^held:') or string.find(name, '^blocked:') then redis.call('HDEL', gate, name) end
  end
  redis.call('HDEL', gate, 'tail', 'tail_again', 'failures', 'broken_since', 'open_until', 'successes', 'probe_until')
  return 1
end

local actions = {
  admit = admit, success = success, failure = failure, pause = pause, resume = resume, hold = hold, reset = reset,
  limited = function(probe, asked) return limited(probe, tonumber(asked)) end,
}
return actions[action](ARGV[6], ARGV[7])
