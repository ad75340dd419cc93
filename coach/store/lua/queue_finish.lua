--[[
queue_finish.lua: store the grade and take the job out of the queue. Behind queue_jobs.lua, which has
KEYS, the order and the invariants.

ARGV[1]  id       ARGV[2]  attempt   ARGV[3]  grade (JSON)
ARGV[4]  ttl_s    integer, 1..2^31: how long the record is kept from now

Returns  {"done", worker, session, user}   graded now
         {"again", worker, session, user}  graded by this attempt before: an answer was lost
         {"lost"}  another attempt has the job, or had it: nothing changed
Errors   COACH_BADARG ttl_s. Nothing has been written.
]]
local id, attempt, ttl_s = ARGV[1], ARGV[2], tonumber(ARGV[4])
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end

local to = redis.call("HMGET", record, "worker", "session", "user", "status", "attempt")
if to[4] == "graded" and to[5] == attempt then
  return { "again", to[1], to[2], to[3] }
end
local job = held(id, attempt)
if not job then
  return { "lost" }
end
redis.call("ZREM", leased, id)
forget(job)
if not to[3] then
  return { "lost" } -- the record has outlived its time: nobody waits for the grade
end
redis.call("HSET", record, "status", "graded", "grade", ARGV[3], "attempt", attempt,
  "ended_ms", int(now_ms))
redis.call("EXPIRE", record, ttl_s)
announce("graded", attempt, id)
note_latency("total", job.lane, now_ms - job.submitted_ms)
return { "done", to[1], to[2], to[3] }
