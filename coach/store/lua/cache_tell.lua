--[[
cache_tell.lua: tell how a lead ended, or that a prefix was used, and by how many requests.

KEYS[1]  prefix, KEYS[2]  told   Data and invariants: cache_lead.lua
ARGV[1]  owner       a worker; not empty
ARGV[2]  how         "warm" (a response that read or wrote it has begun) | "failed" | "dropped"
ARGV[3]  age_ms      integer, 0..3600000: so long ago
ARGV[4]  ttl_ms      integer, 1..86400000: what the provider keeps it for
ARGV[5]  arrivals    integer, 0..1e6: requests since the last time they were told
ARGV[6]  horizon_ms  integer, 1..864000000: how slowly they are forgotten

Returns  {ms for which it is warm, 0: it is not; arrivals in thousandths}
Errors   COACH_BADARG <name>. Nothing has been written.
Clock    TIME of Redis.

"failed" and "dropped" end the owner's own lead and nobody else's. "warm" ends anybody's: it says
that there is nothing left to wait for. Behind arguments.lua.
]]
local KEEP_MS = 14400000
local arg, refusal = integers({
  { 3, "age_ms", 0, 3600000 }, { 4, "ttl_ms", 1, 86400000 }, { 5, "arrivals", 0, 1e6 },
  { 6, "horizon_ms", 1, 864000000 },
})
if not arg then
  return refusal
end
local owner, how = ARGV[1], ARGV[2]
if owner == "" then
  return redis.error_reply("COACH_BADARG owner")
end
if how ~= "warm" and how ~= "failed" and how ~= "dropped" then
  return redis.error_reply("COACH_BADARG how")
end

local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local c = redis.call("HMGET", KEYS[1], "warm", "leader", "lease", "arrivals", "at")
local warm = tonumber(c[1]) or 0
if how == "warm" then
  warm = math.max(warm, now - arg.age_ms + arg.ttl_ms)
end
local age = math.max(0, now - (tonumber(c[5]) or now))
local arrivals = (tonumber(c[4]) or 0) * math.exp(-age / arg.horizon_ms) + arg.arrivals
redis.call(
  "HSET", KEYS[1], "warm", string.format("%.0f", warm),
  "arrivals", string.format("%.6f", arrivals), "at", string.format("%.0f", now)
)
redis.call("PEXPIRE", KEYS[1], KEEP_MS)
local is_led = c[2] and c[2] ~= "" and (tonumber(c[3]) or 0) > now
if is_led and (how == "warm" or c[2] == owner) then
  redis.call("HDEL", KEYS[1], "leader", "lease")
  redis.call("XADD", KEYS[2], "MAXLEN", 1, "*", "how", how, "left", math.max(0, warm - now))
  redis.call("PEXPIRE", KEYS[2], KEEP_MS)
end
return { math.max(0, warm - now), math.floor(arrivals * 1000) }
