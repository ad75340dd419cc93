--[[
limit_set.lua: change one rule of an org. Behind limit_window.lua, which describes the data.

KEYS[1]  limit:{org}:rules  HASH  limits that operators have set

ARGV[1]  field     user:<user> | users | org
ARGV[2]  requests  integer, 1..1e12; "" as it is; "-" none
ARGV[3]  tokens    likewise
ARGV[4]  by        who sets it, no spaces
ARGV[5]  rules_max how many rules an org may have

Returns  {before, after}, each "<requests> <tokens> <second> <by>", or "" for no rule
Errors   COACH_BADARG <name>; COACH_FULL: there are rules_max already. Nothing has been written.
]]
local field, wanted, by = ARGV[1], { ARGV[2], ARGV[3] }, ARGV[4]
if field ~= "org" and field ~= "users" and not string.match(field, "^user:%S*$") then
  return redis.error_reply("COACH_BADARG field")
end
for unit, name in ipairs({ "requests", "tokens" }) do
  local text = wanted[unit]
  if text ~= "" and text ~= "-" and not is_int_in(tonumber(text), 1, 1e12) then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
if not string.match(by, "^%S+$") then
  return redis.error_reply("COACH_BADARG by")
end

local before = redis.call("HGET", KEYS[1], field) or ""
if before == "" and redis.call("HLEN", KEYS[1]) >= tonumber(ARGV[5]) then
  return redis.error_reply("COACH_FULL rules")
end
local values = { string.match(before, "^(%S+) (%S+)") }
for unit = 1, 2 do
  local text = wanted[unit]
  if text == "" then
    text = values[unit] or "-"
  elseif text ~= "-" then
    text = string.format("%.0f", tonumber(text))
  end
  values[unit] = text
end
local after = ""
if values[1] == "-" and values[2] == "-" then
  redis.call("HDEL", KEYS[1], field)
else
  after = string.format("%s %s %s %s", values[1], values[2], time[1], by)
  redis.call("HSET", KEYS[1], field, after)
end
redis.call("EXPIRE", KEYS[1], RULES_S)
return { before, after }
