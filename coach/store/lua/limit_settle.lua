--[[
limit_settle.lua: replace a reservation by what was really used. Behind budget_window.lua.

KEYS     as limit_reserve.lua

ARGV[1]  requests  what was used: 0 (nothing was sent) or 1
ARGV[2]  tokens    likewise; integer, 0..1e9; may be more than was reserved
ARGV[3]  hold_s    how long the id is remembered, at least 61

Returns  "settled"; "ended" for an id that was settled before (a retry): nothing changes;
         "unknown" for one that never was or is forgotten: nothing changes but that it is ended
         now, so that a reservation that comes late cannot revive it
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants  I1 and I2 of limit_reserve.lua. The use counts in the second of the reservation.
]]
local requests, tokens, hold_s = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
if not is_int_in(requests, 0, 1) then
  return redis.error_reply("COACH_BADARG requests")
end
if not is_int_in(tokens, 0, 1e9) then
  return redis.error_reply("COACH_BADARG tokens")
end
if not is_int_in(hold_s, 61, 86400) then
  return redis.error_reply("COACH_BADARG hold_s")
end

local hold = redis.call("GET", KEYS[3])
redis.call("SET", KEYS[3], "ended", "EX", hold_s)
if hold == "ended" then
  return "ended"
elseif not hold then
  return "unknown"
end

local second, reserved = string.match(hold, "^held (%d+) (%d+)$")
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 1, 2 do
  local w = open_window(KEYS[i], 2, 60, now_ms)
  spend(w, tonumber(second), { requests - 1, tokens - tonumber(reserved) })
  close_window(w, hold_s)
end
return "settled"
