-- ARGV: shard, epoch, owner. Reply: 'released' or 'lost'.

local shard, epoch, owner = unpack(ARGV)

if not is_live(shard, epoch, owner) then
  return {'lost'}
end
reopen(shard)
redis.call('HINCRBY', deliveries, shard, -1)
touch()
return {'released'}
