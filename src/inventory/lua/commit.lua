-- Keeps how far the ledger has committed a sale. Safe to repeat and to come late.
--
-- KEYS[1]  committed  hash: version and sold, the highest of each
-- ARGV     version, sold, expires_at (ms, 0 for never)
-- Returns  1

local held = redis.call('HMGET', KEYS[1], 'version', 'sold')
local function highest(held, new)
  return math.max(tonumber(held or 0) or 0, tonumber(new))
end
redis.call('HSET', KEYS[1], 'version', highest(held[1], ARGV[1]), 'sold', highest(held[2], ARGV[2]))
if tonumber(ARGV[3]) > 0 then redis.call('PEXPIREAT', KEYS[1], ARGV[3]) else redis.call('PERSIST', KEYS[1]) end
return 1
