-- Makes a shard done and counts it, once. For an acknowledgement, and with neither epoch nor owner
-- for a commit that was found in the output store, which needs no lease.
-- ARGV: shard, rows succeeded, failed, skipped, tokens, cost [, epoch, owner].
-- Reply: 'counted', 'already_done' or 'lost'.

local shard, succeeded, failed, skipped, tokens, cost, epoch, owner = unpack(ARGV)

if is_done(shard) then
  return {'already_done'}
end
if epoch and not is_live(shard, epoch, owner) then
  return {'lost'}
end

local last_epoch = redis.call('HGET', epochs, shard) or '0'
unlease(shard)
redis.call('ZREM', open, shard)
redis.call('ZREM', dead, shard)
redis.call('HDEL', epochs, shard)
redis.call('HDEL', deliveries, shard)
redis.call('HDEL', errors, shard)
redis.call('SETBIT', done, shard, 1)
redis.call('HSET', records, shard,
  table.concat({succeeded, failed, skipped, tokens, cost, last_epoch}, ' '))
redis.call('HINCRBY', counters, 'succeeded', succeeded)
redis.call('HINCRBY', counters, 'failed', failed)
redis.call('HINCRBY', counters, 'skipped', skipped)
redis.call('HINCRBY', counters, 'tokens', tokens)
redis.call('HINCRBY', counters, 'cost', cost)
touch()
return {'counted'}
