--[[
cache_lead.lua: ask whether the first request for a prompt's prefix may go, or another one has gone.

KEYS[1]  prefix  HASH of one prefix at one endpoint, shared by all workers
  warm             the provider's cache holds it until this ms, as far as anybody knows
  leader, lease    the worker whose request writes it there, and until when (ms) it is waited for
  arrivals, at     requests for it, each counting exp(-age / horizon), as of this ms
  pinger, pinging  the worker that keeps it warm, and until when that place is kept (cache_ping.lua)
KEYS[2]  told    STREAM, at most one entry: how the last lead ended
  how              "warm" | "failed" (nobody needs to wait) | "dropped" (another may lead)
  left             warm: ms for which it holds

ARGV[1]  owner      a worker; not empty. Asked again by the same one, the answer is the same
ARGV[2]  lease_ms   integer, 1..600000
ARGV[3]  margin_ms  integer, 0..3600000: an entry that ends so soon counts as gone

Returns  {"warm", ms left} | {"lead"} | {"follow", ms left of the lease, id to read `told` from}
Errors   COACH_BADARG <name>. Nothing has been written.
Clock    TIME of Redis.

Both keys end 4 h after the last write: longer than any provider keeps what nobody asks for.
]]
local KEEP_MS = 14400000
local owner, lease_ms, margin_ms = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if owner == nil or owner == "" then
  return redis.error_reply("COACH_BADARG owner")
end
if lease_ms == nil or lease_ms < 1 or lease_ms > 600000 then
  return redis.error_reply("COACH_BADARG lease_ms")
end
if margin_ms == nil or margin_ms < 0 or margin_ms > 3600000 then
  return redis.error_reply("COACH_BADARG margin_ms")
end
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local c = redis.call("HMGET", KEYS[1], "warm", "leader", "lease")
local left = (tonumber(c[1]) or 0) - now
if left > margin_ms then
  return { "warm", left }
end
local lease = (tonumber(c[3]) or 0) - now
if c[2] and c[2] ~= "" and c[2] ~= owner and lease > 0 then
  local last = redis.call("XREVRANGE", KEYS[2], "+", "-", "COUNT", 1)
  return { "follow", lease, last[1] and last[1][1] or "0-0" }
end
redis.call("HSET", KEYS[1], "leader", owner, "lease", string.format("%.0f", now + lease_ms))
redis.call("PEXPIRE", KEYS[1], KEEP_MS)
return { "lead" }
