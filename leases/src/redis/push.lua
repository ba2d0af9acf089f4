-- ARGV: whether this is the last chunk ('1' or '0'), then shards. Reply: 'pushed'.
-- Only the last chunk makes the run known, so that a push cut short is noticed and done again.

for i = 2, #ARGV do
  local shard = ARGV[i]
  local is_known = is_done(shard)
    or redis.call('ZSCORE', leased, shard)
    or redis.call('ZSCORE', dead, shard)
  if not is_known then
    redis.call('ZADD', open, shard, shard)
  end
end
if ARGV[1] == '1' then
  redis.call('HSET', counters, 'known', shards_held())
end
touch()
return {'pushed'}
