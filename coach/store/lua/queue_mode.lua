--[[
queue_mode.lua: whether a lane takes jobs in, and whether it hands them out. Behind queue_jobs.lua,
which has KEYS, the order and the invariants.

ARGV[1]  lane  integer, 0..2
ARGV[2]  mode  "open": both | "paused": nothing is handed out | "draining": nothing is taken in

Returns  how many open jobs the lane has
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local lane, mode = tonumber(ARGV[1]), ARGV[2]
if not is_int_in(lane, 0, LANES - 1) then
  return redis.error_reply("COACH_BADARG lane")
end
if mode ~= "open" and mode ~= "paused" and mode ~= "draining" then
  return redis.error_reply("COACH_BADARG mode")
end
if mode == "open" then
  redis.call("HDEL", control, "mode:" .. lane)
else
  redis.call("HSET", control, "mode:" .. lane, mode)
end
tidy_markers(lane, mode == "paused")
wake(lane) -- also where nothing is ready: who sleeps is to learn when a retry is due
local low, high = ranks_of(lane)
return redis.call("ZCOUNT", open, low, high)
