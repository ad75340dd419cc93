--[[
queue_replay.lua: make a dead or a delayed job ready now, for an operator. Behind queue_jobs.lua, which
has KEYS, the order and the invariants.

A dead letter begins again: no failures, a place behind its org's others; its attempts count on, so
that none of its old graders can meddle. A retry keeps its place and costs no token of the budget.

ARGV[1]  id
ARGV[2]  weight  integer, 1..100: its org's
ARGV[3]  ttl_s   integer, 1..2^31: how long the record is kept

Returns  "dead" | "delayed"  where it was; it is ready now
         "ready" | "leased"  nothing changed
         "gone"     its record had outlived its time: the job is gone too
         "unknown"  nothing changed
Errors   COACH_BADARG <name>; COACH_EXHAUSTED starts. Nothing has been written.
]]
local id, weight, ttl_s = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not is_int_in(weight, 1, 100) then
  return redis.error_reply("COACH_BADARG weight")
end
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end
local job = read_job(id)
if not job then
  return "unknown"
end
if redis.call("ZSCORE", leased, id) then
  return "leased"
end
local was = redis.call("ZSCORE", dead, id) and "dead"
  or redis.call("ZSCORE", delayed, id) and "delayed" or "ready"
if was == "ready" then
  return was
end
local org = redis.call("HGET", record, "org")
if not org then
  redis.call("ZREM", dead, id)
  redis.call("ZREM", delayed, id)
  forget(job)
  return "gone"
end
if was == "dead" then
  if not place(job, org, weight) then
    return redis.error_reply("COACH_EXHAUSTED starts")
  end
  job.failures = 0
  keep_place(job, org)
  write_job(job)
  redis.call("ZADD", open, int(job.lane * LANE + job.arrival), id)
  redis.call("HSET", record, "status", "open")
  redis.call("HDEL", record, "code", "message", "failures", "hopeless", "ended_ms", "attempt")
  redis.call("EXPIRE", record, ttl_s)
end
redis.call("ZREM", dead, id)
redis.call("ZREM", delayed, id)
make_ready(job)
note("replayed", job.lane)
wake(job.lane)
return was
