--[[
queue_keep.lua: keep an essay and its grade that were never in the queue. Behind queue_jobs.lua, which
has KEYS, the order and the invariants; the record is as queue_submit and queue_finish leave it.

ARGV[1]   id           ARGV[2]  user     ARGV[3]  org, not empty
ARGV[4]   assignment   ARGV[5]  text     ARGV[6]  digest of what was to be done, never empty
ARGV[7]   lane         integer, 0..2
ARGV[8]   kind         what was done, not empty
ARGV[9]   parameters   JSON; may be empty
ARGV[10]  grade        JSON, not empty
ARGV[11]  took_ms      integer, 0..2^31: from submission until now
ARGV[12]  ttl_s        integer, 1..2^31: how long the record is kept
ARGV[13]  announce     0 or 1: somebody outside is to hear of it

Returns  {"kept"}
         {"known"}  there is a submission of this id, in whatever state: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local id, lane, took_ms, ttl_s = ARGV[1], tonumber(ARGV[7]), tonumber(ARGV[11]), tonumber(ARGV[12])
local announced = tonumber(ARGV[13])

for i, name in pairs({ [1] = "id", [3] = "org", [6] = "digest", [8] = "kind", [10] = "grade" }) do
  if ARGV[i] == "" then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
if not is_int_in(lane, 0, LANES - 1) then
  return redis.error_reply("COACH_BADARG lane")
end
if not is_int_in(took_ms, 0, 2147483648) then
  return redis.error_reply("COACH_BADARG took_ms")
end
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end
if not is_int_in(announced, 0, 1) then
  return redis.error_reply("COACH_BADARG announce")
end

if redis.call("EXISTS", record) == 1 then
  return { "known" }
end
redis.call("HSET", record, "id", id, "user", ARGV[2], "org", ARGV[3], "assignment", ARGV[4],
  "text", ARGV[5], "digest", ARGV[6], "worker", "", "session", "", "lane", lane, "kind", ARGV[8],
  "parameters", ARGV[9], "announce", announced, "submitted_ms", int(now_ms - took_ms), "status", "graded",
  "grade", ARGV[10], "ended_ms", int(now_ms))
redis.call("EXPIRE", record, ttl_s)
index_essay(id, ARGV[8], ttl_s)
announce("graded", 0, id)
return { "kept" }
