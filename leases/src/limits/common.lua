-- What the scripts of the limits share: the names of the keys and the clock. The rules are those of
-- `state.rs`, where they are tested, but for the presence of workers, which one process has no need of.

local calls     = KEYS[1] -- sorted set: calls that count in the present minute, by when they were let in, ms
local tokens    = KEYS[2] -- hash: such a call -> its tokens
local in_flight = KEYS[3] -- sorted set: calls being made, by when they have ended at the latest, ms
local state     = KEYS[4] -- hash: tokens (their sum), calls_max, steady, cut_at, paused_until,
                          -- generation (which tells it from what was kept before the server forgot), began_at,
                          -- count (of calls that this generation let in), last_at (when the last of them was);
                          -- of each bucket what is missing in it, what came back into it, and until when:
                          -- requests_missing and so on;
                          -- requests_allowed, tokens_allowed (what the API said that a minute has);
                          -- heard_at (when any worker was heard of), alive_until (until when none is taken for dead)
local day       = KEYS[5] -- hash: piece of a day -> requests
local accounts  = KEYS[6] -- hash: job -> what it has paid, calls being made included
local bills     = KEYS[7] -- hash: call being made -> what was guessed that it costs, and its job
local guesses   = KEYS[8] -- hash: call being made -> its tokens, how much will have come back into their bucket
                          -- by the time that all of them have, its piece of the day, and when it was let in, ms
local day_tokens = KEYS[9] -- hash: piece of a day -> tokens
local workers   = KEYS[10] -- sorted set: workers, by when they were last heard of, ms
local held      = KEYS[11] -- hash: worker -> how many of the calls being made are its

-- A worker that was not heard of for so long is dead. One that makes calls is heard of at least every two seconds.
local DEAD_MS = 10000

-- When nobody at all was heard of for so long, it was this server that was away.
local SILENT_MS = 5000

-- What nobody touches for two days belongs to no window any more.
local RETENTION_MS = 2 * 24 * 3600 * 1000

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function number(name)
  return tonumber(redis.call('HGET', state, name))
end

-- Amounts are integers beyond what a number of Lua holds exactly: they are added as strings.
local function pay(job, amount)
  if amount ~= '0' then
    redis.call('HINCRBY', accounts, job, amount)
  end
end

local function take_back(job, amount)
  if amount ~= '0' then
    redis.call('HINCRBY', accounts, job, '-' .. amount)
  end
end

-- A bucket, as it was when a call was last let in.
local function bucket(name)
  return {
    name = name, missing = number(name .. '_missing') or 0, came_back = number(name .. '_came_back') or 0,
    at_ms = number(name .. '_at') or 0,
  }
end

local function come_back(it, amount)
  it.missing = it.missing - amount
  it.came_back = it.came_back + amount
end

-- Every digit counts: what is too little by one in the last place would never be full.
local function exact(amount)
  return string.format('%.17g', amount)
end

local function keep(it)
  redis.call('HSET', state, it.name .. '_missing', exact(it.missing),
    it.name .. '_came_back', exact(it.came_back), it.name .. '_at', it.at_ms)
end

-- There is no such bucket any more: one that there is later is full.
local function drop(name)
  redis.call('HDEL', state, name .. '_missing', name .. '_came_back', name .. '_at')
end

-- The worker that makes a call stands in the call's name.
local function worker_of(call)
  return string.match(call, '^(%x+)%-')
end

-- Somebody is alive. After a silence nobody is taken for dead before all had time to be heard of again.
local function hear(worker)
  if now_ms - (number('heard_at') or 0) > SILENT_MS then
    redis.call('HSET', state, 'alive_until', now_ms + DEAD_MS)
  end
  redis.call('HSET', state, 'heard_at', now_ms)
  if worker then
    redis.call('ZADD', workers, now_ms, worker)
  end
end

-- A call is not being made any more. Returns whether it was.
local function ended(call)
  if redis.call('ZREM', in_flight, call) == 0 then
    return false
  end
  redis.call('HDEL', guesses, call)
  redis.call('HDEL', bills, call)
  local worker = worker_of(call)
  if worker and redis.call('HINCRBY', held, worker, -1) <= 0 then
    redis.call('HDEL', held, worker)
  end
  return true
end

-- How many calls are being made, without those of workers that are dead. They count again if their worker
-- is heard of again: it was cut off.
local function being_made()
  local count = redis.call('ZCARD', in_flight)
  if (number('alive_until') or 0) > now_ms then
    return count
  end
  for _, worker in ipairs(redis.call('ZRANGEBYSCORE', workers, '-inf', now_ms - DEAD_MS)) do
    local calls_held = tonumber(redis.call('HGET', held, worker) or 0)
    if calls_held > 0 then
      count = count - calls_held
    else
      redis.call('ZREM', workers, worker)
    end
  end
  return math.max(count, 0)
end

local function touch()
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, RETENTION_MS)
  end
end
