-- Sets the stock left, if it still is what was seen.
--
-- KEYS[1]  sale: as in decide.lua
-- ARGV     stock seen, stock to set
-- Returns  1 when set, 0 when it had changed or the sale is not held.

if redis.call('HGET', KEYS[1], 'stock') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'stock', ARGV[2])
return 1
