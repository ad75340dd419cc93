--[[
queue_submit.lua: take one submission into the grading queue, once.

The queue of a shard, all keys with the hash tag {shard}
  ready     ZSET  id -> rank; rank = lane * 2^51 + arrival, lower is sooner. lane 0..2 and
                  arrival < 2^51, so that a rank is below 3 * 2^51 < 2^53: exact in a double
  delayed   ZSET  id -> when it is due, milliseconds of the Redis clock
  leased    ZSET  id -> end of its lease, milliseconds of the Redis clock
  dead      ZSET  id -> when it was given up, milliseconds of the Redis clock
  jobs      HASH  id -> "rank submitted_ms attempt failures" of every unfinished or dead id.
                  attempt counts claims and is the fencing number; failures counts those that
                  count towards the dead letter
  arrivals  STRING  the last arrival number
  markers:<lane>  LIST  wakes graders; never longer than 64
  record    HASH  submission:{shard}:<id>: the essay, its state, judges' answers, the grade

Invariants (hold before and after every queue_* script)
  I1  an id is in at most one of ready, delayed, leased, dead; if in one of them, it is in jobs
  I2  when a lane has ready ids its marker list is not empty, or a grader that took its last
      marker is about to claim; a grader that dies then delays the others until they look again
  I3  attempt never falls while the id is in jobs

KEYS[1]  record   KEYS[2]  ready   KEYS[3]  jobs   KEYS[4]  arrivals   KEYS[5]  markers of the lane

ARGV[1]   id           ARGV[2]  user     ARGV[3]  org
ARGV[4]   assignment   ARGV[5]  text     ARGV[6]  text_hash, never empty
ARGV[7]   lane         integer, 0..2
ARGV[8]   worker       whose mailbox gets the result; may be empty
ARGV[9]   session      may be empty
ARGV[10]  ttl_s        integer, 1..2^31: how long the record is kept
ARGV[11]  depth_max    integer >= 1: ready ids beyond which new ones are refused

Returns  {"accepted", submitted_ms}   new, and in the queue
         {"present"}      known with this text; the result will go to the worker named now
         {"conflict"}     known with another text: nothing changed
         {"forbidden"}    somebody else's: nothing changed
         {"full"}         nothing changed
Errors   COACH_BADARG <name>; COACH_EXHAUSTED arrivals. Nothing has been written.

Both accepted and present write, so that a WAITAOF behind it on the same connection covers the
submission also when it was an earlier call that took it in.
]]
local record, ready, jobs, arrivals, markers = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, lane, ttl_s, depth_max = ARGV[1], tonumber(ARGV[7]), tonumber(ARGV[10]), tonumber(ARGV[11])
local MARKERS_MAX, LANE = 64, 2251799813685248

local function is_int_in(value, low, high)
  return value ~= nil and value == math.floor(value) and value >= low and value <= high
end

if id == "" then
  return redis.error_reply("COACH_BADARG id")
end
if ARGV[6] == "" then
  return redis.error_reply("COACH_BADARG text_hash")
end
if not is_int_in(lane, 0, 2) then
  return redis.error_reply("COACH_BADARG lane")
end
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end
if not is_int_in(depth_max, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG depth_max")
end

local known = redis.call("HMGET", record, "user", "org", "text_hash")
if known[1] then
  if known[1] ~= ARGV[2] or known[2] ~= ARGV[3] then
    return { "forbidden" }
  end
  if known[3] ~= ARGV[6] then
    return { "conflict" }
  end
  redis.call("HSET", record, "worker", ARGV[8], "session", ARGV[9])
  return { "present" }
end
if redis.call("ZCARD", ready) >= depth_max then
  return { "full" }
end
if tonumber(redis.call("GET", arrivals) or 0) >= LANE - 1 then
  return redis.error_reply("COACH_EXHAUSTED arrivals")
end

local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))
local rank = string.format("%.0f", lane * LANE + redis.call("INCR", arrivals))
redis.call("HSET", record, "id", id, "user", ARGV[2], "org", ARGV[3], "assignment", ARGV[4],
  "text", ARGV[5], "text_hash", ARGV[6], "worker", ARGV[8], "session", ARGV[9],
  "submitted_ms", now_ms, "status", "open")
redis.call("EXPIRE", record, ttl_s)
redis.call("HSET", jobs, id, rank .. " " .. now_ms .. " 0 0")
redis.call("ZADD", ready, rank, id)
if redis.call("LLEN", markers) < MARKERS_MAX then
  redis.call("LPUSH", markers, "1")
end
return { "accepted", now_ms }
