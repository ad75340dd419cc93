--[[
circuit_probe.lua: ask for leave to try out an endpoint whose breaker is open: one request at a time.

KEYS[1]  circuit   HASH; Data and invariants: circuit_report.lua
ARGV[1]  owner     names the probe; not empty
ARGV[2]  lease_ms  integer, 1..600000: the place is another's if nobody reports for so long

Returns  "probe" (the owner may) | "wait" (somebody does, or it is too early) | "go" (not open any more)
Errors   COACH_BADARG <name>. Nothing has been written.
Clock    TIME of Redis.
]]
local owner, lease_ms = ARGV[1], tonumber(ARGV[2])
if owner == nil or owner == "" then
  return redis.error_reply("COACH_BADARG owner")
end
if lease_ms == nil or lease_ms < 1 or lease_ms > 600000 then
  return redis.error_reply("COACH_BADARG lease_ms")
end
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local c = redis.call("HMGET", KEYS[1], "state", "until", "probe", "probe_until")
if c[1] ~= "open" then
  return "go"
end
local taken = c[3] and c[3] ~= "" and now < (tonumber(c[4]) or 0)
if now < (tonumber(c[2]) or 0) or taken then
  return "wait"
end
redis.call("HSET", KEYS[1], "probe", owner, "probe_until", now + lease_ms)
return "probe"
