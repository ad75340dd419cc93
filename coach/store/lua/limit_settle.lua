--[[
limit_settle.lua: replace a reservation by what was really used. Behind limit_window.lua, which
describes the data.

KEYS[1..5]  as limit_reserve.lua

ARGV[1]  id        of the hold
ARGV[2]  requests  what was used: 0 (nothing was sent) or 1
ARGV[3]  tokens    likewise; integer, 0..1e9; may be more than was reserved
ARGV[4]  age_s     seconds since it was reserved, by its owner's clock; integer, 0..1e9
ARGV[5]  lease_ms  as limit_reserve.lua
ARGV[6]  hold_s    likewise

Returns  "settled"; "ended" for an id that was settled before (a retry): nothing changes;
         "unknown" for one that never was, is forgotten or was lost: it is ended now, so that a
         reservation that comes late cannot revive it, and what was used counts from when it began
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants  I1, I2 and I4 of limit_reserve.lua. The use counts in the second of the reservation,
         also where its lease had ended.
]]
local arg, refusal = integers({
  { 2, "requests", 0, 1 }, { 3, "tokens", 0, 1e9 }, { 4, "age_s", 0, 1e9 },
  { 5, "lease_ms", 1000, 60000 }, { 6, "hold_s", 121, 86400 },
})
if not arg then
  return refusal
end
local id, requests, tokens, age_s = ARGV[1], arg.requests, arg.tokens, arg.age_s
local lease_ms, hold_s = arg.lease_ms, arg.hold_s

local hold, second, reserved = read_hold(KEYS[5])
redis.call("SET", KEYS[5], "ended", "EX", hold_s)
if hold == "ended" then
  return "ended"
elseif not hold and requests == 0 and tokens == 0 then
  return "unknown"
end
for at = 1, 3, 2 do
  local w = open_limit(KEYS[at], KEYS[at + 1], lease_ms)
  local used = { requests, tokens }
  if hold and redis.call("ZREM", w.leases_key, lease_member(id, second, reserved)) == 1 then
    used = { requests - 1, tokens - reserved }
  end
  w.is_changed = spend(w, second or w.now_s - age_s, used) or w.is_changed
  close_limit(w, hold_s)
end
return hold and "settled" or "unknown"
