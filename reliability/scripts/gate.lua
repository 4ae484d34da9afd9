-- Everything that is decided about one upstream, each in one step and by one clock: Redis's own.
-- KEYS  1 the gate's hash  2 what is known of the subject, where there is one
-- ARGV  1 action  2 limits as JSON  3 subject, '' for the whole service  4 its pace in seconds or 0  5 waiting jobs  6 jitter 0…1
--       7, 8 by action: admit: digest of the credential or '', 1 if it yields to others     success, failure: number of the probe or 0
--       limited: number of the probe, seconds to wait     unpaid: number of the probe, note
--       pause: by whom, note     hold: digest, note     resume, reset: nothing     queue_up: seconds until it is needed
local gate, single, action, limits = KEYS[1], KEYS[2], ARGV[1], cjson.decode(ARGV[2])
local subject, pace, waiting, jitter = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local clock = redis.call('TIME')
local now = tonumber(clock[1]) + tonumber(clock[2]) / 1000000
-- Whoever is paced is called with the service's own credential, any other subject with one of its own.
local held_field = 'held:' .. (pace > 0 and '' or subject)
local names = {
  'empty_at', 'tail', 'tail_again', 'tail_unpaid', 'failures', 'broken_since', 'open_until', 'successes', 'probe',
  'probe_until', 'paused_since', 'paused_by', 'paused_note', 'blocked:', 'unpaid_until', 'unpaid_note', held_field,
}
local field = {}
for i, value in ipairs(redis.call('HMGET', gate, unpack(names))) do field[names[i]] = value end

local interval = 1 / limits.rate
local tolerance = (limits.burst - 1) * interval
local SET_BACK = 60 -- a clock that differs by less than a minute is only a little wrong

local function text(seconds) return string.format('%.6f', seconds) end

-- A time further ahead than we ever write means that the clock was set back: then it is no more to be trusted.
local function trusted(value, furthest)
  local at = tonumber(value or 0)
  if at > now + furthest + SET_BACK then return 0 end
  return at
end

local function time(name, furthest) return trusted(field[name], furthest) end

-- The subject: when its pace lets it be called again, until when it is blocked, and the tail of its own line.
local own = { free_at = 0, blocked = 0, tail = 0 }
if single then
  local known = redis.call('HMGET', single, 'free_at', 'blocked', 'tail')
  own.free_at = trusted(known[1], limits.max_wait + pace)
  own.blocked = trusted(known[2], limits.longest_block)
  own.tail = tonumber(known[3] or 0)
end

-- It is known for as long as it matters: a million chats cost nothing a few seconds later.
local function remember(name, at)
  own[name] = at
  redis.call('HSET', single, name, text(at))
  redis.call('PEXPIRE', single, math.ceil((math.max(own.free_at, own.blocked, own.tail) - now) * 1000))
end

-- The moment at which the bucket will be empty again, if nobody calls before.
local function empty_at()
  local at = tonumber(field.empty_at or 0)
  local furthest = math.max(now, time('blocked:', limits.longest_block)) + tolerance + interval + limits.max_wait + SET_BACK
  if at > furthest then return now + tolerance end
  return math.max(at, now)
end

local function place_in_line(opening, tail, longest)
  local place = math.max(opening, tail)
  if place > opening + longest then return opening end -- a second lap instead of an absurd wait
  return place
end

-- The seconds after which the first of the waiting jobs comes back: not before the gate can open, and behind all who stand in that
-- line, which reaches an hour ahead unless told otherwise.
local function line_up(opening, line, longest)
  local place = place_in_line(opening, tonumber(field[line] or 0), longest or limits.longest_line)
  redis.call('HSET', gate, line, text(place + waiting * limits.spacing))
  return text(place - now + jitter * limits.spacing)
end

-- The same for one subject of many: what stops it must not move the line of the others.
local function line_up_alone(opening)
  local place = place_in_line(opening, own.tail, limits.longest_line)
  remember('tail', place + waiting * math.max(pace, limits.spacing))
  return text(place - now + jitter * limits.spacing)
end

local function refuse_by_hand(digest)
  local held = field[held_field]
  if held and digest ~= '' then
    if string.sub(held, 1, #digest) == digest then
      local again_at = now + limits.recheck
      return { 'held', held_field == 'held:' and line_up(again_at, 'tail') or line_up_alone(again_at), held }
    end
    redis.call('HDEL', gate, held_field) -- the credential has changed: the hold is over
    if held_field == 'held:' then
      redis.call('HDEL', gate, 'tail', 'tail_again')
      field.tail, field.tail_again = false, false
    end
  end
  if field.paused_since then
    return { 'paused', line_up(now + limits.recheck, 'tail'), field.paused_since, field.paused_by, field.paused_note }
  end
end

local function refuse_by_upstream()
  local unpaid_until = time('unpaid_until', limits.recheck)
  if unpaid_until > now then
    -- A short line in laps: who waits for money may not wait for long, so nobody is sent to the end of a long one.
    return { 'unpaid', line_up(unpaid_until, 'tail_unpaid', limits.recheck), field.unpaid_note }
  end
  local blocked = time('blocked:', limits.longest_block)
  if own.blocked > math.max(blocked, now) then return { 'blocked', line_up_alone(own.blocked), text(own.blocked) } end
  if blocked > now then return { 'blocked', line_up(blocked, 'tail'), text(blocked) } end
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

local function admit(digest, yields)
  local refusal = refuse_by_hand(digest) or refuse_by_upstream()
  if refusal then return refusal end
  -- Half of what a thread may wait before the permit is due, so that a slow way back still finds it.
  local early = limits.max_wait / 2
  if own.free_at - now > limits.max_wait then
    return { 'paced', line_up_alone(own.free_at - early), text(own.free_at) }
  end
  local empty = empty_at()
  local wait = math.max(0, empty - tolerance - now)
  -- Who yields reserves half as far ahead: whoever does not always finds a permit behind them.
  if wait > limits.max_wait / (yields == '1' and 2 or 1) then
    return { 'spent', line_up(now + wait - early, 'tail'), text(wait) }
  end
  if pace > 0 then
    wait = math.max(wait, own.free_at - now) -- the later of both
    remember('free_at', now + wait + pace)
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

-- For who needs no permit before then: a place in the line as long as that is not used up, so that nobody comes to be refused.
local function queue_up(after)
  local earliest = now + tonumber(after)
  if tonumber(field.tail or 0) <= earliest then return after end
  return line_up(earliest, 'tail')
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
  local free = now + math.min(math.max(asked, 0), limits.longest_block)
  if single then
    if asked > 0 then remember('blocked', math.max(own.blocked, free)) end
    return { breaker, line_up_alone(math.max(own.blocked, own.free_at, now + interval)) }
  end
  if asked > 0 then
    free = math.max(time('blocked:', limits.longest_block), free)
    redis.call('HSET', gate, 'blocked:', text(free))
  end
  local empty = math.max(empty_at(), free + tolerance + interval)
  redis.call('HSET', gate, 'empty_at', text(empty))
  return { breaker, line_up(empty - tolerance, 'tail') }
end

local function unpaid(probe, note)
  local breaker = success(probe)[1] -- an upstream that wants its money is alive
  local until_then = now + limits.recheck
  redis.call('HSET', gate, 'unpaid_until', text(until_then), 'unpaid_note', note)
  return { breaker, line_up(until_then, 'tail_unpaid', limits.recheck) }
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
    if string.find(name, '^held:') then redis.call('HDEL', gate, name) end
  end
  redis.call(
    'HDEL', gate, 'tail', 'tail_again', 'failures', 'broken_since', 'open_until', 'successes', 'probe_until', 'blocked:',
    'unpaid_until'
  )
  return 1
end

local actions = {
  admit = admit, success = success, failure = failure, pause = pause, resume = resume, hold = hold, reset = reset,
  unpaid = unpaid, queue_up = queue_up, limited = function(probe, asked) return limited(probe, tonumber(asked)) end,
}
return actions[action](ARGV[7], ARGV[8])
