-- Deducts stock for the orders of one sale, in their order, and says for each whether it will probably
-- be created. Only a hint: the ledger decides. Idempotent: an order that it has deducted for gets the
-- same answer again, and nothing is deducted twice. Orders it refuses leave no trace.
--
-- KEYS[1]  sale      hash: stock (units left), limit per user, opens_at, closes_at (ms, '' for none),
--                    verification and paused ('1' or ''), version, sold, expires_at (ms, 0 for never)
-- KEYS[2]  deducted  set: a digest of each order that it has deducted for
-- KEYS[3]  buyers    hash: user id -> units (only for a sale with a limit)
-- KEYS[4]  committed hash: version and sold, as in commit.lua
-- ARGV[1]  the age above which an order has expired (ms)
-- ARGV     then five for each order: digest, user id, quantity, submitted at (ms, '' for now), and what
--          is known of its user: '' unchecked, '+' eligible, '-' denied
-- Returns  one character for each order, g granted or r refused, or false when the sale is not held; then
--          version and sold that the ledger has committed, '' if that is not known

local committed = redis.call('HMGET', KEYS[4], 'version', 'sold')
local version, sold = committed[1] or '', committed[2] or ''
local sale = redis.call('HMGET', KEYS[1], 'stock', 'limit', 'opens_at', 'closes_at', 'verification',
  'expires_at', 'paused')
if not sale[1] then return { false, version, sold } end
local stock, limit = tonumber(sale[1]), tonumber(sale[2])
local opens_at, closes_at = tonumber(sale[3]), tonumber(sale[4])
local verification, expires_at, paused = sale[5] == '1', tonumber(sale[6]), sale[7] == '1'
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local max_age = tonumber(ARGV[1])

local digests, users = {}, {}
for i = 2, #ARGV, 5 do
  digests[#digests + 1] = ARGV[i]
  users[#users + 1] = ARGV[i + 1]
end
local known = redis.call('SMISMEMBER', KEYS[2], unpack(digests))
local bought = {}
if limit then
  local units = redis.call('HMGET', KEYS[3], unpack(users))
  for i, user in ipairs(users) do bought[user] = tonumber(units[i] or 0) end
end

local hints, fresh, added, buyers = {}, {}, {}, {}
for i, digest in ipairs(digests) do
  local quantity, at = tonumber(ARGV[i * 5 - 1]), math.min(tonumber(ARGV[i * 5]) or now, now)
  local eligibility, user = ARGV[i * 5 + 1], users[i]
  if known[i] == 1 or fresh[digest] then
    hints[i] = 'g'
  elseif paused or now - at > max_age or eligibility == '-'
    or opens_at and at < opens_at or closes_at and at >= closes_at
    or limit and bought[user] + quantity > limit
    or quantity > stock
    or verification and eligibility == '' then
    hints[i] = 'r'
  else
    hints[i] = 'g'
    stock = stock - quantity
    fresh[digest] = true
    added[#added + 1] = digest
    if limit then
      bought[user] = bought[user] + quantity
      buyers[#buyers + 1] = user
      buyers[#buyers + 1] = bought[user]
    end
  end
end

if #added > 0 then
  redis.call('HSET', KEYS[1], 'stock', stock)
  redis.call('SADD', KEYS[2], unpack(added))
  if #buyers > 0 then redis.call('HSET', KEYS[3], unpack(buyers)) end
  if expires_at > 0 then
    redis.call('PEXPIREAT', KEYS[2], expires_at)
    redis.call('PEXPIREAT', KEYS[3], expires_at)
  end
end
return { table.concat(hints), version, sold }
