-- Overwrites what is held of a sale with what the ledger has said. Safe to repeat and to come late: the
-- definition, stock and buyers of an older state are not taken over.
--
-- KEYS[1]  sale, KEYS[2] deducted, KEYS[3] buyers: as in deduct.lua
-- ARGV[1]  '1' to load a sale that is not held, '' to leave it alone
-- ARGV     then of the sale: version, sold, stock (units on offer), limit, opens_at, closes_at,
--          verification, paused, expires_at, as in deduct.lua
-- ARGV     then the number of buyers, and two for each: user id, units
-- ARGV     then two for each order: '1' granted or '' refused, digest
-- Without orders, units that other orders have been deducted for meanwhile stay deducted: then stock is only
-- lowered, unless the definition is a newer one.
-- Returns  1 when the state was taken over, 0 when it was not

local version, sold, stock = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local held = redis.call('HMGET', KEYS[1], 'stock', 'version', 'sold')
if not held[1] then
  if ARGV[1] == '' then return 0 end
  redis.call('DEL', KEYS[1], KEYS[2], KEYS[3])
end
local held_version, held_sold = tonumber(held[2]) or 0, tonumber(held[3]) or 0
local taken = version > held_version or version == held_version and sold >= held_sold

local first = 12 + 2 * tonumber(ARGV[11])
if taken then
  local left = stock - sold
  if first > #ARGV and version == held_version then left = math.min(left, tonumber(held[1]) or left) end
  redis.call('HSET', KEYS[1], 'stock', left, 'version', version, 'sold', sold,
    'limit', ARGV[5], 'opens_at', ARGV[6], 'closes_at', ARGV[7], 'verification', ARGV[8],
    'paused', ARGV[9], 'expires_at', ARGV[10])
  for i = 12, first - 1, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
end
for i = first, #ARGV, 2 do
  if ARGV[i] == '1' then
    redis.call('SADD', KEYS[2], ARGV[i + 1])
  else
    redis.call('SREM', KEYS[2], ARGV[i + 1])
  end
end
for _, key in ipairs(KEYS) do
  if tonumber(ARGV[10]) > 0 then redis.call('PEXPIREAT', key, ARGV[10]) else redis.call('PERSIST', key) end
end
return taken and 1 or 0
