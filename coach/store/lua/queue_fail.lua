--[[
queue_fail.lua: an attempt has failed: try again later, or give the job up as a dead letter. Behind
queue_jobs.lua, which has KEYS, the order and the invariants.

Dead letters keep their place in jobs, so that a replay goes on with the attempt numbers; those older
than ttl_s are dropped here, a few at a time.

ARGV[1]  id       ARGV[2]  attempt
ARGV[3]  delay_ms      integer, 0..86400000: until the next attempt
ARGV[4]  counted       0 or 1: does this failure count towards failures_max
ARGV[5]  failures_max  integer, 1..1000: with so many counted failures the job is dead
ARGV[6]  code          what the student's program is told when it is dead
ARGV[7]  message       what the student is told then
ARGV[8]  reason        what the operator is told
ARGV[9]  ttl_s         integer, 1..2^31: how long record and dead letter are kept
ARGV[10] hopeless      0 or 1: the same essay would fail again

Returns  {"delayed", failures}
         {"dead", failures, worker, session, user}        given up now
         {"dead_again", failures, worker, session, user}  by this attempt before: an answer was lost
         {"lost"}  another attempt has the job, or had it: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local id, attempt = ARGV[1], ARGV[2]
local delay_ms, counted = tonumber(ARGV[3]), tonumber(ARGV[4])
local failures_max, ttl_s = tonumber(ARGV[5]), tonumber(ARGV[9])
local hopeless = tonumber(ARGV[10])

if not is_int_in(delay_ms, 0, 86400000) then
  return redis.error_reply("COACH_BADARG delay_ms")
end
if not is_int_in(counted, 0, 1) then
  return redis.error_reply("COACH_BADARG counted")
end
if not is_int_in(failures_max, 1, 1000) then
  return redis.error_reply("COACH_BADARG failures_max")
end
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end
if not is_int_in(hopeless, 0, 1) then
  return redis.error_reply("COACH_BADARG hopeless")
end

local to = redis.call("HMGET", record, "worker", "session", "user", "status", "attempt", "failures")
if to[4] == "failed" and to[5] == attempt then
  return { "dead_again", tonumber(to[6]), to[1], to[2], to[3] }
end
local job = held(id, attempt)
if not job then
  return { "lost" }
end
redis.call("ZREM", leased, id)
if not to[3] then
  forget(job)
  return { "lost" } -- the record has outlived its time: nobody waits for the grade
end
job.failures = job.failures + counted
write_job(job)
redis.call("HSET", record, "reason", ARGV[8])
if job.failures < failures_max then
  redis.call("ZADD", delayed, int(now_ms + delay_ms), id)
  -- Nothing is ready, but a sleeper must learn when this job is due: it will sleep until then.
  wake(job.lane)
  return { "delayed", job.failures }
end

local old_ms = int(now_ms - ttl_s * 1000)
for _, old in ipairs(redis.call("ZRANGEBYSCORE", dead, "-inf", old_ms, "LIMIT", 0, 16)) do
  redis.call("ZREM", dead, old)
  redis.call("HDEL", jobs, old)
end
redis.call("ZADD", dead, int(now_ms), id)
redis.call("ZREM", open, id)
redis.call("HSET", record, "status", "failed", "attempt", attempt, "code", ARGV[6],
  "message", ARGV[7], "failures", int(job.failures), "hopeless", hopeless, "ended_ms", int(now_ms))
redis.call("EXPIRE", record, ttl_s)
announce("failed", attempt, id)
note("dead", job.lane)
return { "dead", job.failures, to[1], to[2], to[3] }
