-- ARGV: shard, epoch, owner, error, deliveries_max. Reply: 'requeued', 'dead' or 'lost'.

local shard, epoch, owner, error, deliveries_max = unpack(ARGV)

if not is_live(shard, epoch, owner) then
  return {'lost'}
end
local outcome = give_back(shard, error, deliveries_max)
touch()
return {outcome}
