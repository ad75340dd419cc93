--[[
arguments.lua: whether arguments are the numbers they should be. Not run by itself:
coach/store/scripts.py puts it before the scripts whose header says that they stand behind it.

ARGV: of the script behind it, by the indices that it gives.
]]
local function is_int_in(value, low, high)
  return value ~= nil and value == math.floor(value) and value >= low and value <= high
end

-- The integers of ARGV by name; limits: { index, name, low, high }, …. Where one is none, or out of
-- its range: nil, and the error to reply.
local function integers(limits)
  local found = {}
  for _, limit in ipairs(limits) do
    local value = tonumber(ARGV[limit[1]])
    if not is_int_in(value, limit[3], limit[4]) then
      return nil, redis.error_reply("COACH_BADARG " .. limit[2])
    end
    found[limit[2]] = value
  end
  return found
end

