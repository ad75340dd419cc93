--[[
queue_heartbeat.lua: extend a lease to lease_ms from now.

Data and invariants: queue_submit.lua.

KEYS[1]  leased   KEYS[2]  jobs
ARGV[1]  id       ARGV[2]  attempt   ARGV[3]  lease_ms  integer, 1..600000

Returns  1 extended; 0 the lease is lost: stop working on it
Errors   COACH_BADARG lease_ms. Nothing has been written.

A lease that has run out but was not yet noticed by queue_promote is extended: nobody else has the
job.
]]
local leased, jobs = KEYS[1], KEYS[2]
local id, attempt, lease_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])

if lease_ms == nil or lease_ms ~= math.floor(lease_ms) or lease_ms < 1 or lease_ms > 600000 then
  return redis.error_reply("COACH_BADARG lease_ms")
end

local job = redis.call("HGET", jobs, id)
local current = job and string.match(job, "^%d+ %d+ (%d+) %d+$")
if current ~= attempt or not redis.call("ZSCORE", leased, id) then
  return 0
end
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call("ZADD", leased, string.format("%.0f", now_ms + lease_ms), id)
return 1
