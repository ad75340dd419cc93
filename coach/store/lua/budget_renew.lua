--[[
budget_renew.lua: prolong the leases of admitted tickets. Behind budget_line.lua, which has KEYS and
ARGV[1..4].

ARGV[5..]  tickets, 1..1000

Returns  how many of them still had a lease
Errors   COACH_BADARG <name>. Nothing has been written.
]]
if not is_int_in(#ARGV - 4, 1, 1000) then
  return redis.error_reply("COACH_BADARG tickets")
end

-- First, or a lease that has just ended might end in the very call that prolongs it.
local count = 0
for i = 5, #ARGV do
  if redis.call("ZSCORE", leases_key, "t:" .. ARGV[i]) then
    lease("t:" .. ARGV[i], ticket_lease_ms)
    count = count + 1
  end
end
begin()
finish("")
return count
