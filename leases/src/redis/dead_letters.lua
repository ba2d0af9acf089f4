-- ARGV: lowest index, most dead letters. Reply: shard, deliveries, error of each, by index.

local reply = {}
for _, shard in ipairs(redis.call('ZRANGE', dead, ARGV[1], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[2])) do
  table.insert(reply, shard)
  table.insert(reply, redis.call('HGET', deliveries, shard) or '0')
  table.insert(reply, redis.call('HGET', errors, shard) or '')
end
return reply
