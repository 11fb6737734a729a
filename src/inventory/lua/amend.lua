-- Writes the ledger's answers over recorded ones, and gives back what was deducted for them.
--
-- KEYS[1]  sale, KEYS[2] decisions, KEYS[3] buyers: as in decide.lua
-- ARGV[1]  units the ledger says are sold, or '' when it was not asked
-- ARGV     then three for each order: order id, the contents it was proposed with, and the whole
--          answer to hold from now on, or '' to forget the order id
-- Returns  the stock left, or false when the sale is not held.
--
-- Run twice, it may give back twice; what the ledger says is sold bounds that.

local sale = redis.call('HMGET', KEYS[1], 'stock', 'offered')
if not sale[1] then return false end
local stock, offered = tonumber(sale[1]), tonumber(sale[2])

for i = 2, #ARGV, 3 do
  local id, contents, answer = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('HGET', KEYS[2], id) == 'c' .. contents then
    local quantity, user = string.match(contents, '^(%d+):(.*)')
    stock = stock + tonumber(quantity)
    if redis.call('HEXISTS', KEYS[3], user) == 1 then
      redis.call('HINCRBY', KEYS[3], user, -quantity)
    end
  end
  if answer == '' then
    redis.call('HDEL', KEYS[2], id)
  else
    redis.call('HSET', KEYS[2], id, answer)
  end
end

if ARGV[1] ~= '' then stock = math.min(stock, math.max(offered - tonumber(ARGV[1]), 0)) end
redis.call('HSET', KEYS[1], 'stock', stock)
return stock
