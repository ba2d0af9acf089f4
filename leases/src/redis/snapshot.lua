-- Reply: whether the run is known (1 or 0), open, leased, done, dead, rows succeeded, failed,
-- skipped, tokens, cost.

local counted = redis.call('HMGET', counters, 'succeeded', 'failed', 'skipped', 'tokens', 'cost')
return {
  is_whole() and '1' or '0',
  tostring(redis.call('ZCARD', open)),
  tostring(redis.call('ZCARD', leased)),
  tostring(redis.call('BITCOUNT', done)),
  tostring(redis.call('ZCARD', dead)),
  counted[1] or '0',
  counted[2] or '0',
  counted[3] or '0',
  counted[4] or '0',
  counted[5] or '0',
}
