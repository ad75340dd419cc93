--[[
queue_submit.lua: take one submission into the grading queue, once. Behind queue_jobs.lua, which has
KEYS, the order and the invariants.

ARGV[1]   id           ARGV[2]  user     ARGV[3]  org, not empty
ARGV[4]   assignment   ARGV[5]  text     ARGV[6]  digest of what is to be done, never empty
ARGV[7]   lane         integer, 0..2
ARGV[8]   worker       whose mailbox gets the result; may be empty
ARGV[9]   session      may be empty
ARGV[10]  ttl_s          integer, 1..2^31: how long the record is kept
ARGV[11]  depth_max      integer >= 1: open jobs of the shard with which it is refused
ARGV[12]  org_depth_max  integer >= 1: likewise, of its org in its lane
ARGV[13]  weight         integer, 1..100: its org's
ARGV[14]  kind           what is to be done, not empty
ARGV[15]  parameters     JSON; may be empty
ARGV[16]  announce       0 or 1: somebody outside is to hear how it ends
ARGV[17…] judge, answer (JSON), judge, …: judges that need not be asked; may be none

Returns  {"accepted", submitted_ms}   new, and in the queue
         {"present"}      known, and the same; the result will go to the worker named now
         {"conflict"}     known, with another digest: nothing changed
         {"forbidden"}    somebody else's: nothing changed
         {"full"}         nothing changed
         {"org_full"}     nothing changed
         {"draining"}     the lane takes nothing in: nothing changed
Errors   COACH_BADARG <name>; COACH_EXHAUSTED <what>. Nothing has been written.

Both accepted and present write, so that a WAITAOF behind it on the same connection covers the
submission also when it was an earlier call that took it in.
]]
local id, org, lane, ttl_s = ARGV[1], ARGV[3], tonumber(ARGV[7]), tonumber(ARGV[10])
local depth_max, org_depth_max = tonumber(ARGV[11]), tonumber(ARGV[12])
local weight, announced = tonumber(ARGV[13]), tonumber(ARGV[16])

for i, name in pairs({ [1] = "id", [3] = "org", [6] = "digest", [14] = "kind" }) do
  if ARGV[i] == "" then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
if not is_int_in(lane, 0, LANES - 1) then
  return redis.error_reply("COACH_BADARG lane")
end
if not is_int_in(ttl_s, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG ttl_s")
end
if not is_int_in(depth_max, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG depth_max")
end
if not is_int_in(org_depth_max, 1, 2147483648) then
  return redis.error_reply("COACH_BADARG org_depth_max")
end
if not is_int_in(weight, 1, 100) then
  return redis.error_reply("COACH_BADARG weight")
end
if not is_int_in(announced, 0, 1) then
  return redis.error_reply("COACH_BADARG announce")
end

local known = redis.call("HMGET", record, "user", "org", "digest")
if known[1] then
  if known[1] ~= ARGV[2] or known[2] ~= org then
    return { "forbidden" }
  end
  if known[3] ~= ARGV[6] then
    return { "conflict" }
  end
  redis.call("HSET", record, "worker", ARGV[8], "session", ARGV[9])
  return { "present" }
end
if mode_of(lane) == "draining" then
  return { "draining" }
end
if redis.call("ZCARD", open) >= depth_max then
  return { "full" }
end
local job = { id = id, lane = lane, submitted_ms = now_ms, attempt = 0, failures = 0 }
if not place(job, org, weight) then
  return redis.error_reply("COACH_EXHAUSTED starts")
end
if job.ahead >= org_depth_max then
  return { "org_full" }
end
if tonumber(redis.call("HGET", control, "arrivals") or 0) >= LANE - 1 then
  return redis.error_reply("COACH_EXHAUSTED arrivals")
end

job.arrival = redis.call("HINCRBY", control, "arrivals", 1)
redis.call("HSET", record, "id", id, "user", ARGV[2], "org", org, "assignment", ARGV[4],
  "text", ARGV[5], "digest", ARGV[6], "worker", ARGV[8], "session", ARGV[9], "lane", lane,
  "kind", ARGV[14], "parameters", ARGV[15], "announce", announced, "submitted_ms", int(now_ms), "status", "open")
for i = 17, #ARGV - 1, 2 do
  redis.call("HSET", record, "judge:" .. ARGV[i], ARGV[i + 1])
end
redis.call("EXPIRE", record, ttl_s)
index_essay(id, ARGV[14], ttl_s)
keep_place(job, org)
write_job(job)
make_ready(job)
redis.call("ZADD", open, int(lane * LANE + job.arrival), id)
note("submitted", lane)
wake(lane)
return { "accepted", int(now_ms) }
