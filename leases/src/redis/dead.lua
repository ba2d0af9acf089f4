-- ARGV: lowest index, most shards. Reply: the dead shards, by index.

return redis.call('ZRANGE', dead, ARGV[1], '+inf', 'BYSCORE', 'LIMIT', 0, ARGV[2])
