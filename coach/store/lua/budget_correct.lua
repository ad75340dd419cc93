--[[
budget_correct.lua: take over what the provider says: how much is left, and whether to stay away.
Behind budget_line.lua, which has KEYS and ARGV[1..4].

ARGV[5]  quota     "a b c d": what the settings say that the provider allows; 0: no such limit
ARGV[6]  left      "a b c d": what it says is left of each dimension; -1: says nothing. -1..1e15
ARGV[7]  closed_ms how long nobody may go; 0: says nothing; at most an hour

Returns  sum, the window as it is now, "a b c d"
Errors   COACH_BADARG <name>. Nothing has been written.

Only ever downwards: where less is left of the quota than the window says, the rest was spent by
somebody else, and counts from now; a gate that is closed for longer stays closed.
]]
local quota, left, closed_ms = vector(ARGV[5], 0), vector(ARGV[6], 0), tonumber(ARGV[7])
if not are_ints_in(quota, DIMENSIONS, 0, 1e12) then
  return redis.error_reply("COACH_BADARG quota")
end
if not are_ints_in(left, DIMENSIONS, -1, 1e15) then
  return redis.error_reply("COACH_BADARG left")
end
if not is_int_in(closed_ms, 0, 3600000) then
  return redis.error_reply("COACH_BADARG closed_ms")
end

begin()
local others = {}
for d = 1, DIMENSIONS do
  local whole = quota_said and quota_said[d] > 0 and quota_said[d] or quota[d]
  others[d] = left[d] >= 0 and whole > 0 and math.max(0, whole - left[d] - window.sum[d]) or 0
end
charge(others)
if closed_ms > gate_ms() then
  redis.call("HSET", spend_key, "gate", string.format("%.0f", now_ms + closed_ms))
end
finish("")
return packed(window.sum)
