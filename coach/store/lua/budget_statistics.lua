--[[
budget_statistics.lua: an endpoint's budget at this moment. Behind budget_line.lua, which has KEYS and
ARGV[1..4].

Returns  {sum, gate_ms, interactive, submission, background, quota}  the window "a b c d", how long
         the gate stays closed, how many wait in each lane, and what an operator said the quota is
         ("" where nobody did)
]]
begin()
local reply = { packed(window.sum), gate_ms() }
for lane = 0, LANES - 1 do
  reply[#reply + 1] = count_of(lane)
end
reply[#reply + 1] = quota_said and packed(quota_said) or ""
finish("")
return reply
