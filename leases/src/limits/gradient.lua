-- How many calls the API works on at one time before more of them only wait there: the rules of
-- `gradient.rs`, kept in one hash.

local gradient = KEYS[12] -- hash: calls_max, trial (fewer, more), rounds, patience, was_fewer; of the usual round
                          -- (u_) and of the present one (r_) since, calls, in_flight, log and log_squared

local STEP, ROUND_CALLS_MIN, ROUNDS_FIRST, ROUNDS_MAX = 0.8, 40, 10, 80
local WAITING, MORE, ERRORS = 0.75, 1.1, 3

local function fewer(count)
  return math.max(math.floor(count * STEP), 1)
end

local function more(count, concurrency)
  return math.min(math.ceil(count / STEP), concurrency)
end

-- What was learned, as numbers and one word.
local function learned()
  local it, all = {}, redis.call('HGETALL', gradient)
  for i = 1, #all, 2 do
    it[all[i]] = tonumber(all[i + 1]) or all[i + 1]
  end
  return it
end

local function usual_max(it, concurrency)
  return math.min(it.calls_max or concurrency, concurrency)
end

local function gradient_max(it, concurrency)
  local usual = usual_max(it, concurrency)
  if it.trial == 'fewer' then
    return fewer(usual)
  end
  return it.trial == 'more' and more(usual, concurrency) or usual
end

-- Mean of the logarithms of a round, the square of its standard error, and its calls at one time.
local function mean(it, round)
  local count = it[round .. '_calls'] or 0
  local log = it[round .. '_log'] / count
  local variance = math.max(it[round .. '_log_squared'] / count - log * log, 0)
  return log, variance / count, it[round .. '_in_flight'] / count
end

local function is_less_waiting(it, round, other)
  local log, err, count = mean(it, round)
  local other_log, other_err, other_count = mean(it, other)
  local larger, slower = math.log(other_count / count), other_log - log
  return larger >= math.log(MORE) and slower > WAITING * larger and slower > ERRORS * math.sqrt(err + other_err)
end

local PARTS = {'since', 'calls', 'in_flight', 'log', 'log_squared'}

local function becomes_usual(it)
  for _, part in ipairs(PARTS) do
    it['u_' .. part] = it['r_' .. part]
  end
end

local function step(it, count)
  it.calls_max = count
  it.patience = ROUNDS_FIRST
  becomes_usual(it)
end

local function end_round(it, concurrency)
  local usual, patience = usual_max(it, concurrency), math.max(it.patience or 0, ROUNDS_FIRST)
  if not it.trial then
    becomes_usual(it)
    it.rounds = (it.rounds or 0) + 1
    if it.rounds >= patience then
      it.rounds = 0
      local is_fewer = usual >= concurrency or it.was_fewer ~= 1
      it.was_fewer = is_fewer and 1 or 0
      if not is_fewer then
        it.trial = 'more'
      elseif fewer(usual) < usual then
        it.trial = 'fewer'
      end
    end
  elseif it.trial == 'fewer' and is_less_waiting(it, 'r', 'u') then
    step(it, fewer(usual))
    if fewer(it.calls_max) == it.calls_max then
      it.trial = nil
    end
  elseif it.trial == 'more' and not is_less_waiting(it, 'u', 'r') then
    step(it, more(usual, concurrency))
    if it.calls_max == concurrency then
      it.calls_max, it.trial = nil, nil
    end
  else
    it.trial = nil
    it.patience = math.min(patience * 2, ROUNDS_MAX)
  end
end

-- Learns from a call that was answered.
local function see(at_ms, count, concurrency)
  local it = learned()
  if at_ms < (it.r_since or 0) then
    return
  end
  local log = math.log(math.max(now_ms - at_ms, 1))
  it.r_calls = (it.r_calls or 0) + 1
  it.r_in_flight = (it.r_in_flight or 0) + count
  it.r_log = (it.r_log or 0) + log
  it.r_log_squared = (it.r_log_squared or 0) + log * log
  if it.r_calls >= math.max(ROUND_CALLS_MIN, gradient_max(it, concurrency)) then
    end_round(it, concurrency)
    for _, part in ipairs(PARTS) do
      it['r_' .. part] = 0
    end
    it.r_since = now_ms
    -- What has become nil must go too, and HSET takes nothing away.
    redis.call('DEL', gradient)
  end
  local kept = {}
  for name, value in pairs(it) do
    table.insert(kept, name)
    table.insert(kept, type(value) == 'number' and exact(value) or value)
  end
  redis.call('HSET', gradient, unpack(kept))
end

