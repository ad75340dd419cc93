--[[
queue_heartbeat.lua: extend a lease to lease_ms from now. Behind queue_jobs.lua, which has KEYS, the
order and the invariants.

ARGV[1]  id       ARGV[2]  attempt   ARGV[3]  lease_ms  integer, 1..600000

Returns  1 extended; 0 the lease is lost: stop working on it
Errors   COACH_BADARG lease_ms. Nothing has been written.

A lease that has run out but was not yet noticed by a claim or queue_promote is extended: nobody else
has the job.
]]
local lease_ms = tonumber(ARGV[3])
if not is_int_in(lease_ms, 1, 600000) then
  return redis.error_reply("COACH_BADARG lease_ms")
end
if not held(ARGV[1], ARGV[2]) then
  return 0
end
redis.call("ZADD", leased, int(now_ms + lease_ms), ARGV[1])
return 1
