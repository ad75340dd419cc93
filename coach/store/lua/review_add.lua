--[[
review_add.lua: put a graded submission onto its org's list of those a person should
look at. Behind arguments.lua.

KEYS[1]  reviews  ZSET  of the org: "<reason> <id>" -> when, milliseconds of the Redis clock

ARGV[1]  member      "<reason> <id>", not empty
ARGV[2]  ttl_s       integer, 1..2^31: entries older than that leave the list
ARGV[3]  length_max  integer, 1..1000000: beyond it the oldest leave

Returns  1 added; 0 it was there, and keeps its time
Errors   COACH_BADARG <name>. Nothing has been written.
Cost     O(log n)
]]
local reviews, member = KEYS[1], ARGV[1]

if member == "" then
  return redis.error_reply("COACH_BADARG member")
end
local given, refused = integers({
  { 2, "ttl_s", 1, 2147483648 },
  { 3, "length_max", 1, 1000000 },
})
if not given then
  return refused
end
local ttl_s, length_max = given.ttl_s, given.length_max

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local added = redis.call("ZADD", reviews, "NX", string.format("%.0f", now_ms), member)
redis.call("ZREMRANGEBYSCORE", reviews, "-inf", string.format("(%.0f", now_ms - ttl_s * 1000))
redis.call("ZREMRANGEBYRANK", reviews, 0, -length_max - 1)
redis.call("EXPIRE", reviews, ttl_s)
return added
