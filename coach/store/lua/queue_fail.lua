--[[
queue_fail.lua: an attempt has failed: try again later, or give the job up as a dead letter.

Data and invariants: queue_submit.lua. Dead letters keep their place in jobs, so that a replay goes
on with the attempt numbers; those older than ttl_s are dropped here, a few at a time.

KEYS[1]  leased   KEYS[2]  delayed   KEYS[3]  dead   KEYS[4]  jobs   KEYS[5]  record
KEYS[6]  markers of the job's lane
ARGV[1]  id       ARGV[2]  attempt
ARGV[3]  delay_ms      integer, 0..86400000: until the next attempt
ARGV[4]  counted       0 or 1: does this failure count towards failures_max
ARGV[5]  failures_max  integer, 1..1000: with so many counted failures the job is dead
ARGV[6]  code          what the student's program is told when it is dead
ARGV[7]  message       what the student is told then
ARGV[8]  reason        what the operator is told
ARGV[9]  ttl_s         integer, 1..2^31: how long record and dead letter are kept

Returns  {"delayed", failures}
         {"dead", failures, worker, session, user}        given up now
         {"dead_again", failures, worker, session, user}  by this attempt before: an answer was lost
         {"lost"}  another attempt has the job, or had it: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local leased, delayed, dead, jobs, record = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local markers, MARKERS_MAX = KEYS[6], 64
local id, attempt = ARGV[1], ARGV[2]
local delay_ms, counted = tonumber(ARGV[3]), tonumber(ARGV[4])
local failures_max, ttl_s = tonumber(ARGV[5]), tonumber(ARGV[9])

local function is_int_in(value, low, high)
  return value ~= nil and value == math.floor(value) and value >= low and value <= high
end

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

local to = redis.call("HMGET", record, "worker", "session", "user", "status", "attempt", "failures")
if to[4] == "failed" and to[5] == attempt then
  return { "dead_again", tonumber(to[6]), to[1], to[2], to[3] }
end
local job = redis.call("HGET", jobs, id) or ""
local rank, submitted_ms, current, failures = string.match(job, "^(%d+) (%d+) (%d+) (%d+)$")
if current ~= attempt or not redis.call("ZSCORE", leased, id) then
  return { "lost" }
end

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
failures = failures + counted
redis.call("ZREM", leased, id)
if not to[3] then
  redis.call("HDEL", jobs, id)
  return { "lost" } -- the record has outlived its time: nobody waits for the grade
end
redis.call("HSET", jobs, id,
  table.concat({ rank, submitted_ms, attempt, string.format("%.0f", failures) }, " "))
redis.call("HSET", record, "reason", ARGV[8])
if failures < failures_max then
  redis.call("ZADD", delayed, string.format("%.0f", now_ms + delay_ms), id)
  -- Nothing is ready, but a sleeper must learn when this job is due: it will sleep until then.
  if redis.call("LLEN", markers) < MARKERS_MAX then
    redis.call("LPUSH", markers, "1")
  end
  return { "delayed", failures }
end

local old_ms = string.format("%.0f", now_ms - ttl_s * 1000)
for _, old in ipairs(redis.call("ZRANGEBYSCORE", dead, "-inf", old_ms, "LIMIT", 0, 16)) do
  redis.call("ZREM", dead, old)
  redis.call("HDEL", jobs, old)
end
redis.call("ZADD", dead, string.format("%.0f", now_ms), id)
redis.call("HSET", record, "status", "failed", "attempt", attempt, "code", ARGV[6],
  "message", ARGV[7], "failures", string.format("%.0f", failures),
  "ended_ms", string.format("%.0f", now_ms))
redis.call("EXPIRE", record, ttl_s)
return { "dead", failures, to[1], to[2], to[3] }
