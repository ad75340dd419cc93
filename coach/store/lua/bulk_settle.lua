--[[
bulk_settle.lua: essays of a bulk job have their second grade, or never will. The data stands in
bulk_open.lua and bulk_take.lua.

Each is counted once, however often it is settled.

KEYS[1]  job  HASH   KEYS[2]  todo  ZSET   KEYS[3]  fed  ZSET   KEYS[4]  open  ZSET

ARGV[1]  id of the job
ARGV[2]  outcome  "graded" | "failed" | "gone"
ARGV[3…] submission ids; may be none: then only whether the job has ended is looked at

Returns  the job's mode now; empty: there is no such job
Errors   COACH_BADARG outcome. Nothing has been written.
Clock    TIME of Redis
]]
local job, todo, fed, open = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local outcome = ARGV[2]
if outcome ~= "graded" and outcome ~= "failed" and outcome ~= "gone" then
  return redis.error_reply("COACH_BADARG outcome")
end
local mode = redis.call("HGET", job, "mode")
if not mode then
  return ""
end
for i = 3, #ARGV do
  if redis.call("ZREM", fed, ARGV[i]) == 1 then
    redis.call("HINCRBY", job, outcome, 1)
  end
end
if redis.call("ZCARD", todo) + redis.call("ZCARD", fed) > 0 or redis.call("HEXISTS", job, "ended_ms") == 1 then
  return mode
end
if mode ~= "stopped" then
  mode = "done"
end
local time = redis.call("TIME")
redis.call("ZREM", open, ARGV[1])
redis.call("HSET", job, "mode", mode, "ended_ms",
  string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000)))
return mode
