--[[
limit_renew.lua: go on with reservations of one org, whose owner lives. Behind limit_window.lua, which
describes the data.

KEYS[1]      limit:{org}:org            HASH    window of the whole org
KEYS[2]      limit:{org}:leases         ZSET    what is reserved in it
then for each reservation
KEYS[3n]     limit:{org}:user:<user>    HASH    window of its user
KEYS[3n+1]   limit:{org}:leases:<user>  ZSET    what is reserved in it
KEYS[3n+2]   limit:{org}:hold:<id>      STRING  as limit_reserve.lua

ARGV[1]      lease_ms  as limit_reserve.lua
ARGV[2]      hold_s    likewise
ARGV[2+n]    id        of each reservation, at most 1,000

Returns  how many of them are held
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants  I1 and I2 of limit_reserve.lua. One whose lease had ended is reserved again, also above
         the limit: what runs, runs.
]]
local arg, refusal = integers({ { 1, "lease_ms", 1000, 60000 }, { 2, "hold_s", 121, 86400 } })
if not arg then
  return refusal
end
local lease_ms, hold_s = arg.lease_ms, arg.hold_s
if #KEYS ~= 2 + 3 * (#ARGV - 2) or #ARGV > 1002 then
  return redis.error_reply("COACH_BADARG id")
end

local org, users, held_count = open_limit(KEYS[1], KEYS[2], lease_ms), {}, 0
for n = 1, #ARGV - 2 do
  local hold, second, tokens = read_hold(KEYS[3 * n + 2])
  if hold == "held" then
    local user_key, leases_key = KEYS[3 * n], KEYS[3 * n + 1]
    users[user_key] = users[user_key] or open_limit(user_key, leases_key, lease_ms)
    lease_limit(org, ARGV[2 + n], second, tokens, hold_s)
    lease_limit(users[user_key], ARGV[2 + n], second, tokens, hold_s)
    held_count = held_count + 1
  end
end
close_limit(org, hold_s)
for _, user in pairs(users) do
  close_limit(user, hold_s)
end
return held_count
