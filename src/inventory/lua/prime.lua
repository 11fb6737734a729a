-- Loads the counters of a sale, unless they are there.
--
-- KEYS[1]  sale: as in decide.lua
-- ARGV     stock left, limit per user, opens at, closes at ('' for none), expires at (ms, 0 for never)
-- Returns  1 when loaded, 0 when the sale was held already.

if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'stock', ARGV[1], 'limit', ARGV[2], 'opens_at', ARGV[3],
  'closes_at', ARGV[4], 'expires_at', ARGV[5])
if tonumber(ARGV[5]) > 0 then redis.call('PEXPIREAT', KEYS[1], ARGV[5]) end
return 1
