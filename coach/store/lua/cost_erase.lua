--[[
cost_erase.lua: book what one user has cost in an hour on nobody. Data as in cost_book.lua, whose
invariants hold: the sums stay.

KEYS[1]  users  HASH  as KEYS[3] of cost_book.lua

ARGV[1]  the beginning of the user's fields: JSON up to the comma behind the name, never empty
ARGV[2]  the beginning of nobody's

Returns  how many fields were the user's
Errors   COACH_BADARG user. Nothing has been written.
]]
local whose, nobody = ARGV[1], ARGV[2]
if whose == "" or nobody == "" then
  return redis.error_reply("COACH_BADARG user")
end

local function numbers(text)
  return string.gmatch(text, "%d+")
end

local count = 0
local found = redis.call("HGETALL", KEYS[1])
for i = 1, #found, 2 do
  local field, amounts = found[i], found[i + 1]
  if string.sub(field, 1, #whose) == whose then
    local to = nobody .. string.sub(field, #whose + 1)
    local sums, next_of = {}, numbers(redis.call("HGET", KEYS[1], to) or "0 0 0 0 0 0 0")
    for amount in numbers(amounts) do
      sums[#sums + 1] = string.format("%.0f", tonumber(amount) + tonumber(next_of()))
    end
    redis.call("HSET", KEYS[1], to, table.concat(sums, " "))
    redis.call("HDEL", KEYS[1], field)
    count = count + 1
  end
end
return count
