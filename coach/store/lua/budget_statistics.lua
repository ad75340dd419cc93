--[[
budget_statistics.lua: an endpoint's budget at this moment. Behind budget_line.lua, which has KEYS and
ARGV[1..3].

Returns  {sum, gate_ms, interactive, submission, background}  the window "a b c d", how long the gate
         stays closed, and how many wait in each lane
]]
begin()
local reply = { packed(window.sum), gate_ms() }
for lane = 0, 2 do
  local first = string.format("%.0f", lane * LANE_RANKS)
  local behind = string.format("(%.0f", (lane + 1) * LANE_RANKS)
  reply[#reply + 1] = redis.call("ZCOUNT", line_key, first, behind)
end
finish("")
return reply
