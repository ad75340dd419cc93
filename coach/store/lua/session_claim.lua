--[[
session_claim.lua: take a session over, for a client that has shown its token. Data and invariants
as in session_keep.lua. Behind arguments.lua.

KEYS     as session_keep.lua

ARGV[1]  digest   of the token that was shown
ARGV[2]  user     ARGV[3]  org    whose token came with it; empty: none did, and none is needed
ARGV[4]  worker   that takes it over, not empty
ARGV[5]  next     digest of the token that the client gets now
ARGV[6]  ttl_s    integer, 1..1000000

Returns  {"claimed", worker, epoch, fields, said}: who had it (empty: nobody) and the epoch from
         now on, the fields of KEYS[1] as names and values, what the tail holds. The token that was
         shown is honoured until `previous` is cleared; others are void.
         {"unknown"}: not this session's token, or not this user's: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local arg, refusal = integers({ { 6, "ttl_s", 1, 1000000 } })
if not arg then
  return refusal
end
if ARGV[1] == "" then
  return redis.error_reply("COACH_BADARG digest")
end
if ARGV[4] == "" then
  return redis.error_reply("COACH_BADARG worker")
end

local known = redis.call("HMGET", KEYS[1],
  "token", "previous", "user", "org", "worker", "epoch", "revoked")
if known[7] or not known[6] or (known[1] ~= ARGV[1] and known[2] ~= ARGV[1]) then
  return { "unknown" }
end
if ARGV[2] ~= "" and (known[3] ~= ARGV[2] or known[4] ~= ARGV[3]) then
  return { "unknown" }
end
local epoch = redis.call("HINCRBY", KEYS[1], "epoch", 1)
redis.call("HSET", KEYS[1], "worker", ARGV[4], "token", ARGV[5], "previous", ARGV[1])
redis.call("EXPIRE", KEYS[1], arg.ttl_s)
local said = {}
for i, entry in ipairs(redis.call("XRANGE", KEYS[2], "-", "+")) do
  said[i] = entry[2][2]
end
return { "claimed", known[5], epoch, redis.call("HGETALL", KEYS[1]), said }
