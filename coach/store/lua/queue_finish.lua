--[[
queue_finish.lua: store the grade and take the job out of the queue.

Data and invariants: queue_submit.lua.

KEYS[1]  leased   KEYS[2]  jobs   KEYS[3]  record
ARGV[1]  id       ARGV[2]  attempt   ARGV[3]  grade (JSON)
ARGV[4]  ttl_s    integer, 1..2^31: how long the record is kept from now

Returns  {"done", worker, session, user}   graded now
         {"again", worker, session, user}  graded by this attempt before: an answer was lost
         {"lost"}  another attempt has the job, or had it: nothing changed
Errors   COACH_BADARG ttl_s. Nothing has been written.
]]
local leased, jobs, record = KEYS[1], KEYS[2], KEYS[3]
local id, attempt, ttl_s = ARGV[1], ARGV[2], tonumber(ARGV[4])

if ttl_s == nil or ttl_s ~= math.floor(ttl_s) or ttl_s < 1 or ttl_s > 2147483648 then
  return redis.error_reply("COACH_BADARG ttl_s")
end

local to = redis.call("HMGET", record, "worker", "session", "user", "status", "attempt")
if to[4] == "graded" and to[5] == attempt then
  return { "again", to[1], to[2], to[3] }
end
local job = redis.call("HGET", jobs, id)
local current = job and string.match(job, "^%d+ %d+ (%d+) %d+$")
if current ~= attempt or not redis.call("ZSCORE", leased, id) then
  return { "lost" }
end
local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
redis.call("ZREM", leased, id)
redis.call("HDEL", jobs, id)
if not to[3] then
  return { "lost" } -- the record has outlived its time: nobody waits for the grade
end
redis.call("HSET", record, "status", "graded", "grade", ARGV[3], "attempt", attempt,
  "ended_ms", now_ms)
redis.call("EXPIRE", record, ttl_s)
return { "done", to[1], to[2], to[3] }
