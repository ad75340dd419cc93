--[[
cache_ping.lua: ask for leave to keep a prefix warm: one worker of all, shortly before it ends, if it pays.

KEYS[1]  prefix       Data and invariants: cache_lead.lua
ARGV[1]  owner        a worker; not empty
ARGV[2]  ahead_ms     integer, 1..3600000: what is warm for longer needs no ping yet
ARGV[3]  lease_ms     integer, 1..600000: the place is another's if the ping has not ended for so long
ARGV[4]  arrivals     integer, 0..1e6: requests since the last time they were told
ARGV[5]  horizon_ms   integer, 1..864000000
ARGV[6]  arrivals_min integer, 0..1e12, thousandths: fewer do not pay for it

Returns  {answer, ms for which it is warm}, and the answer is
         "ping" (the owner may) | "later" | "taken" (somebody does) | "poor" (it does not pay) | "cold"
Errors   COACH_BADARG <name>. Nothing has been written.
Clock    TIME of Redis. Behind arguments.lua.
]]
local KEEP_MS = 14400000
local arg, refusal = integers({
  { 2, "ahead_ms", 1, 3600000 }, { 3, "lease_ms", 1, 600000 }, { 4, "arrivals", 0, 1e6 },
  { 5, "horizon_ms", 1, 864000000 }, { 6, "arrivals_min", 0, 1e12 },
})
if not arg then
  return refusal
end
local owner = ARGV[1]
if owner == "" then
  return redis.error_reply("COACH_BADARG owner")
end

local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local c = redis.call("HMGET", KEYS[1], "warm", "arrivals", "at", "pinger", "pinging")
local left = (tonumber(c[1]) or 0) - now
local age = math.max(0, now - (tonumber(c[3]) or now))
local arrivals = (tonumber(c[2]) or 0) * math.exp(-age / arg.horizon_ms) + arg.arrivals
if arg.arrivals > 0 then
  redis.call(
    "HSET", KEYS[1], "arrivals", string.format("%.6f", arrivals), "at", string.format("%.0f", now)
  )
  redis.call("PEXPIRE", KEYS[1], KEEP_MS)
end
if left <= 0 then
  return { "cold", 0 }
end
if left > arg.ahead_ms then
  return { "later", left }
end
if c[4] and c[4] ~= "" and c[4] ~= owner and (tonumber(c[5]) or 0) > now then
  return { "taken", left }
end
if arrivals * 1000 < arg.arrivals_min then
  return { "poor", left }
end
redis.call("HSET", KEYS[1], "pinger", owner, "pinging", string.format("%.0f", now + arg.lease_ms))
return { "ping", left }
