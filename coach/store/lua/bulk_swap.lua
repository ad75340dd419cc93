--[[
bulk_swap.lua: change what is known of a provider's batch, if it is still what the caller thinks. So of
two processes one asks, and one alone takes up what a dead one has left.

KEYS[1]  batches  HASH  of a bulk job: "chunk:<n>" -> its essays (JSON); "asked:<n>:<provider>" ->
         "asking <since> <at> <who>" | "batch <id>" | "done"; absent: not asked

ARGV[1]  field, not empty   ARGV[2]  old value; empty: absent   ARGV[3]  new value; empty: remove it
ARGV[4]  ttl_s  how long all of it is kept, 1 or more

Returns  1 changed; 0 it was another: nothing changed
Errors   COACH_BADARG field. Nothing has been written.
]]
if ARGV[1] == "" then
  return redis.error_reply("COACH_BADARG field")
end
if (redis.call("HGET", KEYS[1], ARGV[1]) or "") ~= ARGV[2] then
  return 0
end
if ARGV[3] == "" then
  redis.call("HDEL", KEYS[1], ARGV[1])
else
  redis.call("HSET", KEYS[1], ARGV[1], ARGV[3])
end
redis.call("EXPIRE", KEYS[1], ARGV[4])
return 1
