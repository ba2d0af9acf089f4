-- What the scripts share: the names of the keys, the clock, and the moves between states.
-- The scripts are atomic, and all of a run's keys carry one hash tag, so a cluster keeps them together.

local open       = KEYS[1]  -- sorted set: open shards, by index
local leased     = KEYS[2]  -- sorted set: leased shards, by the moment their time runs out, ms
local owners     = KEYS[3]  -- hash: leased shard -> owner of its lease
local claims     = KEYS[4]  -- hash: owner of a lease -> its shard; tells a repeated claim from a new one
local epochs     = KEYS[5]  -- hash: shard that was ever leased -> epoch of its last lease
local deliveries = KEYS[6]  -- hash: shard that was ever leased -> deliveries that count against it
local errors     = KEYS[7]  -- hash: dead shard -> why its last delivery failed
local dead       = KEYS[8]  -- sorted set: dead shards, by index
local done       = KEYS[9]  -- bitmap: one bit per shard that is done
local records    = KEYS[10] -- hash: done shard -> its counts and the epoch of its last lease, as it may be opened again
local counters   = KEYS[11] -- hash: known (shards held after the push), succeeded, failed, skipped, tokens, cost

-- A run that nobody touches for a week is forgotten; whoever comes back plans again.
local RETENTION_MS = 7 * 24 * 3600 * 1000

local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

-- Every script that writes ends with this, so that all keys of a run expire together.
local function touch()
  for _, key in ipairs(KEYS) do
    redis.call('PEXPIRE', key, RETENTION_MS)
  end
end

-- A lease is live while its shard is leased under its epoch and owner and its time has not run out.
local function is_live(shard, epoch, owner)
  local expires_ms = redis.call('ZSCORE', leased, shard)
  return expires_ms
    and now_ms < tonumber(expires_ms)
    and redis.call('HGET', epochs, shard) == epoch
    and redis.call('HGET', owners, shard) == owner
end

local function is_done(shard)
  return redis.call('GETBIT', done, shard) == 1
end

-- Ends the lease of a shard, if it has one; the caller says what the shard is now.
local function unlease(shard)
  local owner = redis.call('HGET', owners, shard)
  if owner then
    redis.call('HDEL', claims, owner)
    redis.call('HDEL', owners, shard)
  end
  redis.call('ZREM', leased, shard)
end

local function reopen(shard)
  unlease(shard)
  redis.call('ZADD', open, shard, shard)
end

-- Ends a delivery that failed: the shard is open again, or dead after its last delivery.
local function give_back(shard, error, deliveries_max)
  local delivered = redis.call('HGET', deliveries, shard) or 0
  if tonumber(delivered) < tonumber(deliveries_max) then
    reopen(shard)
    return 'requeued'
  end
  unlease(shard)
  redis.call('ZADD', dead, shard, shard)
  redis.call('HSET', errors, shard, error)
  return 'dead'
end

-- How many shards are in the store, in whatever state.
local function shards_held()
  return redis.call('ZCARD', open) + redis.call('ZCARD', leased)
    + redis.call('ZCARD', dead) + redis.call('BITCOUNT', done)
end

-- Whether the run was pushed and all of it is still here: shards only ever come and never go, unless
-- the server lost its data, or a part of it by evicting keys.
local function is_whole()
  local known = redis.call('HGET', counters, 'known')
  return known and tonumber(known) <= shards_held()
end
