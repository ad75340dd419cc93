--[[
session_revoke.lua: make a session void, for an operator: nobody goes on with it. Data and invariants
as in session_keep.lua.

KEYS     as session_keep.lua

ARGV[1]  user   ARGV[2]  org    whose it must be; both empty: whoever's it is

Returns  {"revoked", worker}  who is to be told (empty: nobody has it)
         {"unknown"}          no such session, or not theirs, or void already: nothing changed
]]
local known = redis.call("HMGET", KEYS[1], "user", "org", "worker", "revoked")
if not known[1] or known[4] or
    (ARGV[1] ~= "" and (known[1] ~= ARGV[1] or known[2] ~= ARGV[2])) then
  return { "unknown" }
end
local ttl_s = redis.call("TTL", KEYS[1])
redis.call("DEL", KEYS[1], KEYS[2])
redis.call("HSET", KEYS[1], "revoked", "1") -- and no more whose it was
if ttl_s > 0 then
  redis.call("EXPIRE", KEYS[1], ttl_s)
end
return { "revoked", known[3] or "" }
