--[[
calibration_use.lua: use a calibration that was kept, or none.

KEYS[1]  calibration  as calibration_keep.lua has it

ARGV[1]  version  integer, 0..2^53: 0 is none

Returns  1: it is in use; 0: no such version is kept, and nothing has changed
Errors   COACH_BADARG version. Nothing has been written.
]]
local version = tonumber(ARGV[1])
if not version or version ~= math.floor(version) or version < 0 or version > 2 ^ 53 then
  return redis.error_reply("COACH_BADARG version")
end
local named = string.format("%.0f", version)
if version > 0 and redis.call("HEXISTS", KEYS[1], "v:" .. named) == 0 then
  return 0
end
redis.call("HSET", KEYS[1], "current", named)
return 1
