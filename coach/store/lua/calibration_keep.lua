--[[
calibration_keep.lua: keep a new calibration, and use it from now on.

KEYS[1]  calibration  HASH: "last" the highest version there was, "current" the one in use (0: none),
                      "v:<version>" its JSON. No TTL: it is the operator's word.

ARGV[1]  calibration  JSON, not empty
ARGV[2]  kept_max     integer, 1..1000: of older ones so many are kept at most

Returns  its version, one more than any before, also after a reset
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local key = KEYS[1]
local kept_max = tonumber(ARGV[2])
if ARGV[1] == "" then
  return redis.error_reply("COACH_BADARG calibration")
end
if not kept_max or kept_max ~= math.floor(kept_max) or kept_max < 1 or kept_max > 1000 then
  return redis.error_reply("COACH_BADARG kept_max")
end
local version = redis.call("HINCRBY", key, "last", 1)
redis.call("HSET", key, "v:" .. version, ARGV[1], "current", version)
redis.call("HDEL", key, "v:" .. (version - kept_max - 1))
return version
