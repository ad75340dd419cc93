--[[
queue_cancel.lua: take a job out of the queue whatever it is doing, for an operator. Behind
queue_jobs.lua, which has KEYS, the order and the invariants.

Who has it leased can neither extend, finish nor fail it afterwards.

ARGV[1]  id
ARGV[2]  code     what the student's program is told   ARGV[3]  message  what the student is told
ARGV[4]  reason   what the operator is told            ARGV[5]  ttl_s    integer, 1..2^31

Returns  {"ready" | "delayed" | "leased", worker, session, user}  where it was; its owner is to be told
         {"dead"}     it was given up before, and its owner told
         {"gone"}     the record had outlived its time
         {"unknown"}  nothing changed
Errors   COACH_BADARG ttl_s. Nothing has been written.
]]
local id, ttl_s = ARGV[1], tonumber(ARGV[5])
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end
local job = read_job(id)
if not job then
  return { "unknown" }
end
local was = "dead"
if redis.call("ZREM", ready, ready_member(job)) == 1 then
  was = "ready"
elseif redis.call("ZREM", delayed, id) == 1 then
  was = "delayed"
elseif redis.call("ZREM", leased, id) == 1 then
  was = "leased"
end
redis.call("ZREM", dead, id)
forget(job)
tidy_markers(job.lane, mode_of(job.lane) == "paused")
if was == "dead" then
  return { "dead" }
end
note("cancelled", job.lane)
local to = redis.call("HMGET", record, "worker", "session", "user")
if not to[3] then
  return { "gone" }
end
redis.call("HSET", record, "status", "failed", "code", ARGV[2], "message", ARGV[3],
  "reason", ARGV[4], "failures", int(job.failures), "ended_ms", int(now_ms))
redis.call("HDEL", record, "attempt") -- its grader is not to take this for its own doing
redis.call("EXPIRE", record, ttl_s)
announce("failed", int(job.attempt), id)
return { was, to[1], to[2], to[3] }
