--[[
bulk_mode.lua: pause a bulk job, go on with it, or stop it for good. The data stands in bulk_open.lua.

What is being graded is finished in any case.

KEYS[1]  job  HASH   KEYS[2]  todo  ZSET

ARGV[1]  mode  "running" | "paused" | "stopped"

Returns  the mode now: of a job that is done or stopped it stays; empty: there is no such job
Errors   COACH_BADARG mode. Nothing has been written.
]]
local job, todo = KEYS[1], KEYS[2]
local mode = ARGV[1]
if mode ~= "running" and mode ~= "paused" and mode ~= "stopped" then
  return redis.error_reply("COACH_BADARG mode")
end
local now = redis.call("HGET", job, "mode")
if not now then
  return ""
end
if now == "done" or now == "stopped" then
  return now
end
redis.call("HSET", job, "mode", mode)
if mode == "stopped" then
  redis.call("DEL", todo)
end
return mode
