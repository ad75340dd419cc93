--[[
limit_show.lua: what the limits of a user and of their org are, and what is used of them.
Behind limit_window.lua, which describes the data.

KEYS[1..4]  as limit_reserve.lua
KEYS[5]     limit:{org}:rules  HASH  limits that operators have set

ARGV[1]  user      its field of the rules
ARGV[2]  settings  as limit_reserve.lua
ARGV[3]  lease_ms  likewise
ARGV[4]  hold_s    likewise

Returns  for each of user_requests, user_tokens, org_requests and org_tokens three in a row: the limit,
         what is reserved or used of it, and the field of the rules that it comes from, or "settings"
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local arg, refusal = integers({ { 3, "lease_ms", 1000, 60000 }, { 4, "hold_s", 121, 86400 } })
if not arg then
  return refusal
end
local settings, lease_ms, hold_s = vector(ARGV[2], 0), arg.lease_ms, arg.hold_s
if not are_ints_in(settings, 4, 1, 1e12) then
  return redis.error_reply("COACH_BADARG settings")
end

local limits, origins = read_rules(KEYS[5], ARGV[1], settings)
local org, user = open_limit(KEYS[1], KEYS[2], lease_ms), open_limit(KEYS[3], KEYS[4], lease_ms)
local reply = {}
for at, w in ipairs({ user, user, org, org }) do
  reply[#reply + 1] = limits[at]
  reply[#reply + 1] = w.sum[(at - 1) % 2 + 1]
  reply[#reply + 1] = origins[at]
end
close_limit(org, hold_s)
close_limit(user, hold_s)
return reply
