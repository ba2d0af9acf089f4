-- ARGV: shards. Reply: 'reopened'.
-- Opens shards that are done or dead, with all their deliveries before them; others are left alone.

-- Never below nothing: the counters may have been lost since the shard was counted.
local function take_back(field, count)
  -- As a string: a number of Lua does not hold every cost exactly, and Redis knows no minus zero.
  if count ~= '0' and redis.call('HINCRBY', counters, field, '-' .. count) < 0 then
    redis.call('HSET', counters, field, 0)
  end
end

-- Counts a done shard no longer. It keeps its epoch, so that no older lease comes alive again.
local function undo(shard)
  redis.call('SETBIT', done, shard, 0)
  local record = redis.call('HGET', records, shard)
  if record then
    local succeeded, failed, skipped, tokens, cost, epoch =
      string.match(record, '^(%d+) (%d+) (%d+) (%d+) (%d+) (%d+)$')
    take_back('succeeded', succeeded)
    take_back('failed', failed)
    take_back('skipped', skipped)
    take_back('tokens', tokens)
    take_back('cost', cost)
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
