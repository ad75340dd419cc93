--[[
bulk_take.lua: which essays of a bulk job are to be graded now. Behind arguments.lua; the data stands in
bulk_open.lua.

Idempotent but for what is moved: who dies behind it finds the same ids again, and who is slow gives
nothing to do twice, since a second grade's id follows from the job and the essay.

KEYS[1]  job  HASH   KEYS[2]  todo  ZSET
KEYS[3]  fed  ZSET   submission id -> when it was taken, milliseconds of the Redis clock

ARGV[1]  window  integer, 1..10000: so many of a job are graded at once
ARGV[2]  ttl_s   integer, 1..2^31: how long fed is kept

Returns  {mode, id, …}  those in fed; mode empty: there is no such job
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local job, todo, fed = KEYS[1], KEYS[2], KEYS[3]
local given, refused = integers({ { 1, "window", 1, 10000 }, { 2, "ttl_s", 1, 2147483648 } })
if not given then
  return refused
end
local mode = redis.call("HGET", job, "mode") or ""
if mode == "running" then
  local free = given.window - redis.call("ZCARD", fed)
  if free > 0 then
    local time = redis.call("TIME")
    local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
    for _, id in ipairs(redis.call("ZRANGE", todo, 0, free - 1)) do
      redis.call("ZREM", todo, id)
      redis.call("ZADD", fed, now_ms, id)
    end
    redis.call("EXPIRE", fed, given.ttl_s)
  end
end
local reply = { mode }
for _, id in ipairs(redis.call("ZRANGE", fed, 0, -1)) do
  reply[#reply + 1] = id
end
return reply
