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
local id = ARGV[1]

for i, name in pairs({ [1] = "id", [3] = "org", [6] = "digest", [8] = "kind", [10] = "grade" }) do
  if ARGV[i] == "" then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
local arg, refusal = integers({
  { 7, "lane", 0, LANES - 1 },
  { 11, "took_ms", 0, 2147483648 },
  { 12, "ttl_s", 1, 2147483648 },
  { 13, "announce", 0, 1 },
})
if not arg then
  return refusal
end

if redis.call("EXISTS", record) == 1 then
  return { "known" }
end
redis.call("HSET", record, "id", id, "user", ARGV[2], "org", ARGV[3], "assignment", ARGV[4],
  "text", ARGV[5], "digest", ARGV[6], "worker", "", "session", "", "lane", arg.lane, "kind", ARGV[8],
  "parameters", ARGV[9], "announce", arg.announce, "submitted_ms", int(now_ms - arg.took_ms), "status", "graded",
  "grade", ARGV[10], "ended_ms", int(now_ms))
redis.call("EXPIRE", record, arg.ttl_s)
index_essay(id, ARGV[8], arg.ttl_s)
announce("graded", 0, id)
return { "kept" }
