-- ARGV: owner of the new lease, its TTL in ms, deliveries_max, the error of a lease that ran out,
-- most leases reclaimed by one call.
-- Reply: 'lease', shard, epoch; or 'wait', 'drained', 'unknown'.

local owner, lease_ttl_ms, deliveries_max, expired_error, reclaimed_max = unpack(ARGV)

-- The lease that this very claim gave before, if its reply was lost.
local function claimed_before()
  local shard = redis.call('HGET', claims, owner)
  local epoch = shard and redis.call('HGET', epochs, shard)
  if epoch and is_live(shard, epoch, owner) then
    redis.call('ZADD', leased, now_ms + lease_ttl_ms, shard)
    return {'lease', shard, epoch}
  end
end

local function reclaim()
  local expired =
    redis.call('ZRANGE', leased, '-inf', now_ms, 'BYSCORE', 'LIMIT', 0, reclaimed_max)
  for _, shard in ipairs(expired) do
    give_back(shard, expired_error, deliveries_max)
  end
end

local function claim_first_open()
  local shard = redis.call('ZRANGE', open, 0, 0)[1]
  if not shard then
    return nil
  end
  redis.call('ZREM', open, shard)
  redis.call('ZADD', leased, now_ms + lease_ttl_ms, shard)
  redis.call('HSET', owners, shard, owner)
  redis.call('HSET', claims, owner, shard)
  redis.call('HINCRBY', deliveries, shard, 1)
  local epoch = redis.call('HINCRBY', epochs, shard, 1)
  return {'lease', shard, tostring(epoch)}
end

local function nothing_open()
  if not is_whole() then
    return {'unknown'}
  end
  return {redis.call('ZCARD', leased) > 0 and 'wait' or 'drained'}
end

local reply = claimed_before()
if not reply then
  reclaim()
  reply = claim_first_open() or nothing_open()
end
touch()
return reply
