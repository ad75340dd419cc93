--[[
budget_correct.lua: take over what the provider says: how much is left, and whether to stay away.
Behind budget_line.lua, which has KEYS and ARGV[1..3].

ARGV[4]  least     "a b c d": what must have been spent of each dimension, since the provider has no
                   more left; 0: says nothing. 0..1e12
ARGV[5]  closed_ms how long nobody may go; 0: says nothing; at most an hour

Returns  sum, the window as it is now, "a b c d"
Errors   COACH_BADARG <name>. Nothing has been written.

Only ever downwards: where the window holds less than `least`, the rest was spent by somebody else,
and counts from now; a gate that is closed for longer stays closed.
]]
local least, closed_ms = vector(ARGV[4], 0), tonumber(ARGV[5])
if not are_ints_in(least, DIMENSIONS, 0, 1e12) then
  return redis.error_reply("COACH_BADARG least")
end
if not is_int_in(closed_ms, 0, 3600000) then
  return redis.error_reply("COACH_BADARG closed_ms")
end

begin()
local others = {}
for d = 1, DIMENSIONS do
  others[d] = math.max(0, least[d] - window.sum[d])
end
spend(window, window.now_s, others)
if closed_ms > gate_ms() then
  redis.call("HSET", spend_key, "gate", string.format("%.0f", now_ms + closed_ms))
end
finish("")
return packed(window.sum)
