-- Loads the counters of a sale, or takes over what a later version has changed.
--
-- KEYS[1]  sale: as in decide.lua
-- ARGV     units on offer, units sold, version, limit per user, opens at, closes at ('' for none),
--          verification ('1', or '' for none), expires at (ms, 0 for never)
-- Returns  1 when anything was written, 0 when this version or a later one was held already.

local offered, sold, version = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local held = redis.call('HMGET', KEYS[1], 'stock', 'offered', 'version')
local stock = offered - sold
if held[1] then
  if tonumber(held[3]) >= version then return 0 end
  stock = tonumber(held[1]) + offered - tonumber(held[2])
end
redis.call('HSET', KEYS[1], 'stock', stock, 'offered', offered, 'version', version,
  'limit', ARGV[4], 'opens_at', ARGV[5], 'closes_at', ARGV[6], 'verification', ARGV[7],
  'expires_at', ARGV[8])
if tonumber(ARGV[8]) > 0 then
  redis.call('PEXPIREAT', KEYS[1], ARGV[8])
else
  redis.call('PERSIST', KEYS[1])
end
return 1
