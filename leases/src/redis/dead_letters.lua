-- ARGV: most dead letters, at least 1. Reply: shard, deliveries, error of each, by index.

local reply = {}
for _, shard in ipairs(redis.call('ZRANGE', dead, 0, ARGV[1] - 1)) do
  table.insert(reply, shard)
  table.insert(reply, redis.call('HGET', deliveries, shard) or '0')
  table.insert(reply, redis.call('HGET', errors, shard) or '')
end
return reply
