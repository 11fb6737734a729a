-- Decides a batch of orders of one sale, in their order, and deducts the stock they take.
-- Idempotent by order id: a known id gets its recorded answer again.
--
-- KEYS[1]  sale       hash: stock (units left), offered, version, limit, opens_at, closes_at (ms, '' for
--                     none), verification ('1', or '' for none), expires_at (ms, 0 for never)
-- KEYS[2]  decisions  hash: order id -> answer .. quantity .. ':' .. user id
-- KEYS[3]  buyers     hash: user id -> units bought (only for a sale with a limit)
-- ARGV     four for each order: order id, quantity .. ':' .. user id, submitted at (ms), clearance
--          ('' unchecked, '+' given, or the answer that refuses it)
-- Returns  {stock left, one character for each order}, or false when the sale is not held.
--          Answers: c created, s sold out, d user denied, l purchase limit, n not open, x closed,
--          e expired; in upper case when it was recorded before; ! for other contents; ? for c,
--          but the user was not checked: nothing is deducted or recorded.

local sale = redis.call('HMGET', KEYS[1], 'stock', 'limit', 'opens_at', 'closes_at', 'expires_at',
  'verification')
if not sale[1] then return false end
local stock, limit = tonumber(sale[1]), tonumber(sale[2])
local opens_at, closes_at, expires_at = tonumber(sale[3]), tonumber(sale[4]), tonumber(sale[5])
local verification = sale[6] == '1'

local ids, users = {}, {}
for i = 1, #ARGV, 4 do
  ids[#ids + 1] = ARGV[i]
  users[#users + 1] = string.match(ARGV[i + 1], ':(.*)')
end
local known = redis.call('HMGET', KEYS[2], unpack(ids))
local bought = {}
if limit then
  local units = redis.call('HMGET', KEYS[3], unpack(users))
  for i, user in ipairs(users) do bought[user] = tonumber(units[i] or 0) end
end

local answers, recorded, fresh, buyers = {}, {}, {}, {}
local before = stock
for i, id in ipairs(ids) do
  local contents, at, clearance = ARGV[i * 4 - 2], tonumber(ARGV[i * 4 - 1]), ARGV[i * 4]
  local earlier = known[i] or fresh[id]
  if earlier then
    local same = string.sub(earlier, 2) == contents
    answers[i] = same and string.upper(string.sub(earlier, 1, 1)) or '!'
  else
    local quantity, user = tonumber(string.match(contents, '^%d+')), users[i]
    local answer
    if clearance ~= '' and clearance ~= '+' then answer = clearance
    elseif opens_at and at < opens_at then answer = 'n'
    elseif closes_at and at >= closes_at then answer = 'x'
    elseif limit and bought[user] + quantity > limit then answer = 'l'
    elseif quantity > stock then answer = 's'
    elseif verification and clearance == '' then answer = '?'
    else
      answer = 'c'
      stock = stock - quantity
      if limit then
        bought[user] = bought[user] + quantity
        buyers[#buyers + 1] = user
        buyers[#buyers + 1] = bought[user]
      end
    end
    answers[i] = answer
    if answer ~= '?' then
      fresh[id] = answer .. contents
      recorded[#recorded + 1] = id
      recorded[#recorded + 1] = fresh[id]
    end
  end
end

if #recorded > 0 then
  redis.call('HSET', KEYS[2], unpack(recorded))
  if expires_at > 0 then redis.call('PEXPIREAT', KEYS[2], expires_at) end
end
if #buyers > 0 then
  redis.call('HSET', KEYS[3], unpack(buyers))
  if expires_at > 0 then redis.call('PEXPIREAT', KEYS[3], expires_at) end
end
if stock ~= before then redis.call('HSET', KEYS[1], 'stock', stock) end
return {stock, table.concat(answers)}
