-- ARGV: shard, epoch, owner, TTL in ms. Reply: 'renewed' or 'lost'.

local shard, epoch, owner, lease_ttl_ms = unpack(ARGV)

if not is_live(shard, epoch, owner) then
  return {'lost'}
end
redis.call('ZADD', leased, now_ms + lease_ttl_ms, shard)
touch()
return {'renewed'}
