--[[
score_enter.lua: write down, or take back, the score that a person gives an essay. Behind arguments.lua.

KEYS[1]  record  HASH  submission:{shard}:<id>: queue_jobs.lua has its fields; here one for each person:
                       "person:<who>" -> "<score> <blind> <when, milliseconds of the Redis clock>"
KEYS[2]  scored  ZSET  of the org: the ids of its essays with scores -> when the last one was entered

ARGV[1]  id          ARGV[2]  org, not empty    ARGV[3]  who, not empty
ARGV[4]  score       integer, 0..100; -1: take it back
ARGV[5]  blind       0 or 1: whether the person had not seen what the judges gave
ARGV[6]  ttl_s       integer, 1..2^31: ids that were entered longer ago leave the list
ARGV[7]  people_max  integer, 1..1000: so many may score one essay
ARGV[8]  length_max  integer, 1..1000000: beyond it the oldest ids leave the list

Returns  {"entered", when}  in place of an earlier one of the same person
         {"taken"}          there is none of this person any more
         {"unknown"}        the org has no essay of this id: nothing changed
         {"full"}           so many people have scored it already: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.

A score ends with its essay: it is in the essay's record, whose time it does not prolong.
Cost     O(fields of the record) + O(log n)
]]
local record, scored = KEYS[1], KEYS[2]
local id, org, field = ARGV[1], ARGV[2], "person:" .. ARGV[3]

for i, name in pairs({ [1] = "id", [2] = "org", [3] = "who" }) do
  if ARGV[i] == "" then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
local given, refused = integers({
  { 4, "score", -1, 100 },
  { 5, "blind", 0, 1 },
  { 6, "ttl_s", 1, 2147483648 },
  { 7, "people_max", 1, 1000 },
  { 8, "length_max", 1, 1000000 },
})
if not given then
  return refused
end

local known = redis.call("HMGET", record, "org", "kind")
if known[1] ~= org or known[2] ~= "grade" then
  return { "unknown" }
end
local others = 0
for _, name in ipairs(redis.call("HKEYS", record)) do
  if name:sub(1, 7) == "person:" and name ~= field then
    others = others + 1
  end
end
if given.score >= 0 and others >= given.people_max then
  return { "full" }
end

if given.score < 0 then
  redis.call("HDEL", record, field)
  if others == 0 then
    redis.call("ZREM", scored, id)
  end
  return { "taken" }
end
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local now = string.format("%.0f", now_ms)
redis.call("HSET", record, field, string.format("%d %d %s", given.score, given.blind, now))
redis.call("ZADD", scored, now, id)
redis.call("ZREMRANGEBYSCORE", scored, "-inf", string.format("(%.0f", now_ms - given.ttl_s * 1000))
redis.call("ZREMRANGEBYRANK", scored, 0, -given.length_max - 1)
redis.call("EXPIRE", scored, given.ttl_s)
return { "entered", now }
