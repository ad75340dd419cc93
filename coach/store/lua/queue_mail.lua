--[[
queue_mail.lua: put a result into a worker's mailbox.

KEYS[1]  mail  STREAM  of the worker: entries kind, session, user, org, submission, payload

ARGV[1]  length_max  integer, 1..1000000: about so many entries are kept
ARGV[2]  ttl_s       integer, 1..604800: the mailbox of a worker that is gone disappears after it
ARGV[3]  kind        "grading", "grade" or "failed"
ARGV[4]  session   ARGV[5]  user   ARGV[6]  submission   ARGV[7]  payload (JSON)
ARGV[8]  org       of the user, where all of their sessions are to hear of it; else empty

Returns  the entry's id
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local length_max, ttl_s = tonumber(ARGV[1]), tonumber(ARGV[2])
if length_max == nil or length_max < 1 or length_max > 1000000 then
  return redis.error_reply("COACH_BADARG length_max")
end
if ttl_s == nil or ttl_s < 1 or ttl_s > 604800 then
  return redis.error_reply("COACH_BADARG ttl_s")
end
if ARGV[3] ~= "grading" and ARGV[3] ~= "grade" and ARGV[3] ~= "failed" then
  return redis.error_reply("COACH_BADARG kind")
end
local entry = redis.call("XADD", KEYS[1], "MAXLEN", "~", ARGV[1], "*", "kind", ARGV[3],
  "session", ARGV[4], "user", ARGV[5], "org", ARGV[8], "submission", ARGV[6], "payload", ARGV[7])
redis.call("EXPIRE", KEYS[1], ARGV[2])
return entry
