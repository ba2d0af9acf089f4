
-- Ends a call: its tokens are corrected, and what it says of the API is believed.
local id, actual, verdict = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local pause_ms, concurrency = tonumber(ARGV[4]), tonumber(ARGV[5])
local cost = ARGV[6]
-- What the API said that it lets in in a minute, or 0.
local allowed = {requests = tonumber(ARGV[7]), tokens = tonumber(ARGV[8])}

hear(worker_of(id))
local guessed, job = string.match(redis.call('HGET', bills, id) or '', '^(%d+) (.*)$')
local guess = redis.call('HGET', guesses, id) or ''
local wanted, back_at, piece, at_ms = string.match(guess, '^(%S+) (%S+) (%S+) (%d+)$')
at_ms = tonumber(at_ms)
local in_flight_before = redis.call('ZCARD', in_flight)
if not ended(id) then
  return 0
end
if job then
  if cost ~= '-1' and redis.call('HEXISTS', accounts, job) == 1 then
    pay(job, cost)
    take_back(job, guessed)
  end
end
-- What the server gave up is noticed by the next question, and not made whole in part here.
local before = redis.call('HGET', tokens, id)
if actual >= 0 and before and redis.call('ZSCORE', calls, id) then
  redis.call('HSET', tokens, id, actual)
  redis.call('HINCRBY', state, 'tokens', actual - before)
end
if actual >= 0 and wanted then
  local extra = actual - wanted
  if redis.call('HEXISTS', state, 'tokens_missing') == 1 then
    -- What was too much comes back, as far as time has not brought it back already.
    local it = bucket('tokens')
    if extra >= 0 then
      it.missing = it.missing + extra
    else
      local not_yet = math.max(back_at - it.came_back, 0)
      come_back(it, math.min(-extra, not_yet, it.missing))
    end
    keep(it)
  end
  if redis.call('HEXISTS', day_tokens, piece) == 1 then
    redis.call('HINCRBY', day_tokens, piece, extra)
  end
end
if pause_ms > 0 then
  local until_ms = math.max(number('paused_until') or 0, now_ms + pause_ms)
  redis.call('HSET', state, 'paused_until', until_ms)
end
for name, most in pairs(allowed) do
  if most > 0 then
    redis.call('HSET', state, name .. '_allowed', most)
  elseif verdict == 'fine' then
    -- An API that answers and says nothing of it is another one, or has it no more.
    redis.call('HDEL', state, name .. '_allowed')
  end
end
if verdict == 'fine' and at_ms then
  see(at_ms, in_flight_before, concurrency)
end
local calls_max = number('calls_max')
if verdict == 'fine' and calls_max then
  if calls_max < (number('steady') or 0) then
    calls_max = calls_max + 1
  else
    calls_max = calls_max + 1 / calls_max
  end
  if calls_max >= concurrency then
    redis.call('HDEL', state, 'calls_max', 'steady', 'cut_at')
  else
    redis.call('HSET', state, 'calls_max', exact(calls_max))
  end
elseif verdict == 'too_much' then
  -- Calls that were on their way at a cut say nothing that it did not.
  local cut_at = number('cut_at')
  if not cut_at or not at_ms or at_ms > cut_at then
    local half = math.max(math.min(calls_max or concurrency, concurrency) / 2, 1)
    redis.call('HSET', state, 'calls_max', exact(half), 'steady', exact(half), 'cut_at', now_ms)
  end
end
touch()
return 1
