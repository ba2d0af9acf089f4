-- ARGV: shards. Reply: 'reopened'.
-- Opens shards that are done or dead, with all their deliveries before them; others are left alone.

-- Never below nothing: the counters may have been lost since the shard was counted.
local function take_back(field, count)
  local counted = tonumber(redis.call('HGET', counters, field) or 0)
  redis.call('HSET', counters, field, string.format('%.0f', math.max(counted - count, 0)))
end

-- Counts a done shard no longer. It keeps its epoch, so that no older lease comes alive again.
local function undo(shard)
  redis.call('SETBIT', done, shard, 0)
  local record = redis.call('HGET', records, shard)
  if record then
    local succeeded, failed, skipped, tokens, epoch =
      string.match(record, '^(%d+) (%d+) (%d+) (%d+) (%d+)$')
    take_back('succeeded', succeeded)
    take_back('failed', failed)
    take_back('skipped', skipped)
    take_back('tokens', tokens)
    redis.call('HSET', epochs, shard, epoch)
    redis.call('HDEL', records, shard)
  end
end

local function revive(shard)
  redis.call('ZREM', dead, shard)
  redis.call('HDEL', errors, shard)
  redis.call('HDEL', deliveries, shard)
end

for _, shard in ipairs(ARGV) do
  local was_done, was_dead = is_done(shard), redis.call('ZSCORE', dead, shard)
  if was_done then
    undo(shard)
  end
  if was_dead then
    revive(shard)
  end
  if was_done or was_dead then
    reopen(shard)
  end
end
touch()
return {'reopened'}
