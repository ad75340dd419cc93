--[[
bulk_open.lua: begin a bulk job: essays that are to be graded again, in the background. Behind
arguments.lua.

An essay of a job is in todo, then in fed while its second grade is being made, then counted in the job.

KEYS[1]  jobs  ZSET  of the shard: job id -> when it was opened, milliseconds of the Redis clock
KEYS[2]  job   HASH  id, org, kind, by, way, mode, total, graded, failed, gone, opened_ms, ended_ms
               mode: running | paused | stopped | done
KEYS[3]  todo  ZSET  submission id -> its place
KEYS[4]  open  ZSET  of the shard: as jobs, only those that have not ended

ARGV[1]  id    not empty
ARGV[2]  org   not empty   ARGV[3]  kind  not empty   ARGV[4]  by  who wants it
ARGV[5]  ttl_s     integer, 1..2^31: how long all of it is kept
ARGV[6]  jobs_max  integer, 1..100000: jobs a shard remembers; the oldest are forgotten
ARGV[7]  way       "live" | "batch"
ARGV[8…] submission ids, one or more

Returns  "opened" | "present"  a job of this id was opened before: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.
Cost     O(n log n)
]]
local jobs, job, todo, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local given, refused = integers({ { 5, "ttl_s", 1, 2147483648 }, { 6, "jobs_max", 1, 100000 } })
if not given then
  return refused
end
for i, name in ipairs({ "id", "org", "kind" }) do
  if ARGV[i] == "" then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
if ARGV[7] ~= "live" and ARGV[7] ~= "batch" then
  return redis.error_reply("COACH_BADARG way")
end
if #ARGV < 8 then
  return redis.error_reply("COACH_BADARG submissions")
end
if redis.call("EXISTS", job) == 1 then
  return "present"
end

local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
for i = 8, #ARGV do
  redis.call("ZADD", todo, "NX", i, ARGV[i])
end
redis.call("HSET", job, "id", ARGV[1], "org", ARGV[2], "kind", ARGV[3], "by", ARGV[4], "way", ARGV[7], "mode", "running",
  "total", redis.call("ZCARD", todo), "graded", 0, "failed", 0, "gone", 0, "opened_ms", now_ms)
redis.call("ZADD", jobs, now_ms, ARGV[1])
redis.call("ZADD", open, now_ms, ARGV[1])
redis.call("ZREMRANGEBYRANK", jobs, 0, -given.jobs_max - 1)
for _, key in ipairs({ jobs, job, todo, open }) do
  redis.call("EXPIRE", key, given.ttl_s)
end
return "opened"
