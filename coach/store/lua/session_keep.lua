--[[
session_keep.lua: write down how a session stands, by the worker that has it. Behind arguments.lua.

KEYS[1]  session  HASH    user, org, role, worker, epoch, token, previous, state (JSON), and one
                          draft:<name> (JSON) for each draft; revoked: 1 once it is void
KEYS[2]  tail     STREAM  what was said while nobody listened: entries said (JSON), in order

ARGV[1]  worker    whose session it is, not empty
ARGV[2]  epoch     integer, 1..2^31: raised by each take-over
ARGV[3]  ttl_s     integer, 1..1000000
ARGV[4]  tail      "clear" (the client is connected), "append" what was said, or "replace" the
                   tail by it
ARGV[5]  tail_max  integer, 1..1000000: about so many entries are kept
ARGV[6]  parted    "1": nobody has the session from now on; else "0"
ARGV[7]  fields    integer >= 0: how many names and values of KEYS[1] follow, then what was said

Returns  "kept"
         "moved"     another worker has it: nothing changed
         "revoked"   nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants  the session belongs to one worker, the one of the highest epoch; only it writes.
]]
local arg, refusal = integers({
  { 2, "epoch", 1, 2147483648 }, { 3, "ttl_s", 1, 1000000 }, { 5, "tail_max", 1, 1000000 },
  { 7, "fields", 0, #ARGV - 7 },
})
if not arg then
  return refusal
end
local epoch, ttl_s, fields = arg.epoch, arg.ttl_s, arg.fields
if ARGV[1] == "" then
  return redis.error_reply("COACH_BADARG worker")
end
if ARGV[4] ~= "clear" and ARGV[4] ~= "append" and ARGV[4] ~= "replace" then
  return redis.error_reply("COACH_BADARG tail")
end
if fields % 2 ~= 0 then
  return redis.error_reply("COACH_BADARG fields")
end

local known = redis.call("HMGET", KEYS[1], "epoch", "worker", "revoked")
if known[3] then
  return "revoked"
end
if known[1] and (tonumber(known[1]) ~= epoch or known[2] ~= ARGV[1] and known[2] ~= "") then
  return "moved"
end
local holder = ARGV[1]
if ARGV[6] == "1" then
  holder = ""
end
redis.call("HSET", KEYS[1], "epoch", epoch, "worker", holder)
for i = 8, 7 + fields, 2 do
  redis.call("HSET", KEYS[1], ARGV[i], ARGV[i + 1])
end
redis.call("EXPIRE", KEYS[1], ttl_s)
if ARGV[4] ~= "append" then
  redis.call("DEL", KEYS[2])
end
for i = 8 + fields, #ARGV do
  redis.call("XADD", KEYS[2], "MAXLEN", "~", arg.tail_max, "*", "said", ARGV[i])
end
redis.call("EXPIRE", KEYS[2], ttl_s)
return "kept"
