
-- Lets a call in. Reply: 'granted', the generation of what is kept here, and how many calls it let in so
-- far; 'wait' and milliseconds, of which -1 means until a call has ended; 'unfilled' if nobody knows what the job has paid; or 'spent' if
-- it has paid what it may.
local id, wanted = ARGV[1], tonumber(ARGV[2])
-- Limits of a minute and of a day, or 0.
local requests_max, tokens_max = tonumber(ARGV[3]), tonumber(ARGV[4])
local requests_day_max, tokens_day_max = tonumber(ARGV[5]), tonumber(ARGV[6])
local concurrency, window_ms = tonumber(ARGV[7]), tonumber(ARGV[8])
local timeout_ms, piece_ms, pieces = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[11])
-- Whether a minute is a bucket; then what each of the two lets in at once when it is full, and by which part of
-- a minute and of itself it is smaller than the API's.
local is_bucket = ARGV[12] == 'bucket'
local requests_burst, tokens_burst = tonumber(ARGV[13]), tonumber(ARGV[14])
local margin, margin_max = tonumber(ARGV[15]), tonumber(ARGV[16])
-- What the asker was told with the last of its calls that may still count: the generation, or nothing, and
-- the number.
local known, known_count = ARGV[17], tonumber(ARGV[18])
-- Who pays, if anybody; then the price, the most that the job may pay, and what it paid at least, or -1.
local job, price, paid_max, paid_min = ARGV[19], ARGV[20], ARGV[21], ARGV[22]

-- What the API said of itself counts where it is less.
local function within(most, burst, allowed)
  if not allowed then
    return most, burst
  elseif most == 0 then
    return allowed, allowed
  end
  return math.min(most, allowed), burst
end
requests_max, requests_burst = within(requests_max, requests_burst, number('requests_allowed'))
tokens_max, tokens_burst = within(tokens_max, tokens_burst, number('tokens_allowed'))

hear(worker_of(id))
local generation = redis.call('HGET', state, 'generation')
if not generation then
  generation = id
  -- What else is kept may still be there.
  local sum = 0
  for _, some in ipairs(redis.call('HVALS', tokens)) do
    sum = sum + some
  end
  redis.call('HSET', state, 'generation', id, 'began_at', now_ms, 'tokens', sum)
  touch()
end
-- The server forgot what may still count: all that it let in before this generation, which others than the
-- asker may have begun, or the last of it, as after a crash.
if known ~= '' then
  local until_ms = number('paused_until') or 0
  if known ~= generation then
    until_ms = math.max(until_ms, number('began_at') + window_ms)
  elseif known_count > (number('count') or 0) then
    until_ms = math.max(until_ms, now_ms + window_ms)
    redis.call('HSET', state, 'count', known_count)
  end
  redis.call('HSET', state, 'paused_until', until_ms)
end

local gone = redis.call('ZRANGEBYSCORE', calls, '-inf', now_ms - window_ms)
for _, old in ipairs(gone) do
  -- Not its negative, which for none would be a minus zero.
  redis.call('HINCRBY', state, 'tokens', 0 - (redis.call('HGET', tokens, old) or 0))
  redis.call('HDEL', tokens, old)
  redis.call('ZREM', calls, old)
end
-- The server gave up one of the two keys of the minute, as when it is short of memory: what it held may count
-- until the last call that was let in has left.
local last_at = number('last_at') or 0
if last_at > now_ms then
  -- The clock was put back, and by how much nobody knows.
  last_at = 0
  redis.call('HSET', state, 'last_at', 0)
end
local counted = redis.call('ZCARD', calls)
local is_lost = counted == 0 and last_at + window_ms > now_ms
if is_lost or counted ~= redis.call('HLEN', tokens) then
  redis.call('DEL', calls, tokens)
  counted = 0
  redis.call('HSET', state, 'tokens', 0,
    'paused_until', math.max(number('paused_until') or 0, last_at + window_ms))
end
-- Nobody told how these ended: they are paid as was guessed.
for _, old in ipairs(redis.call('ZRANGEBYSCORE', in_flight, '-inf', now_ms)) do
  ended(old)
end
if redis.call('ZCARD', in_flight) == 0 then
  -- Of calls that the server gave up nobody will tell the end.
  redis.call('DEL', bills, guesses, held)
end

if job ~= '' then
  local paid = redis.call('HGET', accounts, job)
  if paid_min ~= '-1' and tonumber(paid_min) >= tonumber(paid or 0) then
    paid = paid_min
    redis.call('HSET', accounts, job, paid)
  end
  if not paid then
    return {'unfilled'}
  end
  local left = tonumber(paid_max) - tonumber(paid)
  if paid_max ~= '-1' and (left <= 0 or tonumber(price) > left) then
    local is_open = false
    for _, bill in ipairs(redis.call('HVALS', bills)) do
      is_open = is_open or string.match(bill, '^%d+ (.*)$') == job
    end
    if is_open then
      touch()
      return {'wait', '-1'}
    end
    if left <= 0 then
      touch()
      return {'spent'}
    end
  end
end

local paused_until = number('paused_until') or 0
if paused_until > now_ms then
  touch()
  return {'wait', tostring(paused_until - now_ms)}
end

local calls_max = math.floor(math.min(number('calls_max') or concurrency, concurrency))
calls_max = math.min(calls_max, gradient_max(learned(), concurrency))
if being_made() >= math.max(calls_max, 1) then
  return {'wait', '-1'}
end

local wait_ms = 0
if not is_bucket and requests_max > 0 and counted >= requests_max then
  local first = redis.call('ZRANGE', calls, counted - requests_max, counted - requests_max, 'WITHSCORES')
  wait_ms = math.max(wait_ms, first[2] + window_ms - now_ms)
end

local sum = number('tokens') or 0
if not is_bucket and tokens_max > 0 and counted > 0 and sum + wanted > tokens_max then
  local needed, freed, leaves = sum + wanted - tokens_max, 0, nil
  local at = 0
  while freed < needed and at < counted do
    local some = redis.call('ZRANGE', calls, at, at + 99, 'WITHSCORES')
    for i = 1, #some, 2 do
      if freed < needed then
        freed = freed + (redis.call('HGET', tokens, some[i]) or 0)
        leaves = some[i + 1]
      end
    end
    at = at + 100
  end
  wait_ms = math.max(wait_ms, leaves + window_ms - now_ms)
end

-- Lets time pass for a bucket, and waits until it has room. What is more than all of it is let in when it
-- is full.
local function refilled(name, amount, most, burst)
  burst = math.min(burst, most)
  local capacity, per_ms = burst - math.min(most * margin, burst * margin_max), most / window_ms
  local it = bucket(name)
  come_back(it, math.min(math.max(now_ms - it.at_ms, 0) * per_ms, it.missing))
  it.at_ms = now_ms
  local lacking = math.min(it.missing + amount - capacity, it.missing)
  if lacking > 0 then
    wait_ms = math.max(wait_ms, math.ceil(lacking / per_ms))
  end
  return it
end

local request_bucket = is_bucket and requests_max > 0
  and refilled('requests', 1, requests_max, requests_burst)
local token_bucket = is_bucket and tokens_max > 0
  and refilled('tokens', wanted, tokens_max, tokens_burst)

-- Waits until the days that `counts` keeps have room. What is more than a day allows is let in when there is
-- nothing else.
local piece = math.floor(now_ms / piece_ms)
local function of_day(counts, amount, max)
  local today, sums, numbers = 0, {}, {}
  local all = redis.call('HGETALL', counts)
  for i = 1, #all, 2 do
    local at = tonumber(all[i])
    if at + pieces < piece then
      redis.call('HDEL', counts, all[i])
    else
      sums[at] = tonumber(all[i + 1])
      today = today + sums[at]
      table.insert(numbers, at)
    end
  end
  table.sort(numbers)
  local needed, freed = math.min(today + amount - max, today), 0
  for _, at in ipairs(numbers) do
    if freed < needed then
      freed = freed + sums[at]
      if freed >= needed then
        wait_ms = math.max(wait_ms, (at + pieces + 1) * piece_ms - now_ms)
      end
    end
  end
end

-- A day is counted without a limit too: one may be given in its middle.
of_day(day, 1, requests_day_max > 0 and requests_day_max or math.huge)
of_day(day_tokens, wanted, tokens_day_max > 0 and tokens_day_max or math.huge)

if wait_ms > 0 then
  return {'wait', tostring(wait_ms)}
end
redis.call('ZADD', calls, now_ms, id)
redis.call('HSET', tokens, id, wanted)
redis.call('HINCRBY', state, 'tokens', wanted)
redis.call('HSET', state, 'last_at', now_ms)
redis.call('ZADD', in_flight, now_ms + timeout_ms, id)
redis.call('HINCRBY', held, worker_of(id), 1)
if job ~= '' then
  pay(job, price)
  redis.call('HSET', bills, id, price .. ' ' .. job)
end
if request_bucket then
  request_bucket.missing = request_bucket.missing + 1
  keep(request_bucket)
else
  drop('requests')
end
local back_at = 0
if token_bucket then
  token_bucket.missing = token_bucket.missing + wanted
  back_at = token_bucket.came_back + token_bucket.missing
  keep(token_bucket)
else
  drop('tokens')
end
redis.call('HINCRBY', day, piece, 1)
redis.call('HINCRBY', day_tokens, piece, wanted)
redis.call('HSET', guesses, id, wanted .. ' ' .. exact(back_at) .. ' ' .. piece .. ' ' .. now_ms)
touch()
return {'granted', generation, tostring(redis.call('HINCRBY', state, 'count', 1))}
