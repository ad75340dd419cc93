--[[
budget_admit.lua: admit a request at once, or put its ticket into the line. Behind budget_line.lua,
which has KEYS and ARGV[1..4].

ARGV[5]  ticket    "<worker>:<n>", never used again
ARGV[6]  lane      0 interactive | 1 submission | 2 background
ARGV[7]  ask       "requests input output tokens", integers, 0..1e9
ARGV[8]  org       whose turn it is, without spaces; not empty
ARGV[9]  weight    of the org, 0.01..1000
ARGV[10] rank      "" for a newcomer; "start arrival", as it had them, for a ticket that fell out of
                   the line
ARGV[11] line_max  tickets that may wait

Returns  {"admitted", sum, quota}  the window as it is now, "a b c d"; quota: what an operator said
                   it is, "" where nobody did
         {"queued", rank, position, wait_ms, each_ms}  in line; position from 1; outlook of the next
         {"full", length, wait_ms, each_ms}  nothing changed
         {"too_large", dimension}  its input is more than the whole quota an operator said
         {"ended"}  the ticket was given back before (its caller had gone): nothing changed
         For a ticket that is known already (a retry) likewise, and nothing changes.
Errors   COACH_BADARG <name>. Nothing has been written.

Admitted at once: nobody waits, the gate is open, every dimension is below soft, and the ask keeps it
under hard.
]]
local ticket, lane, ask = ARGV[5], tonumber(ARGV[6]), vector(ARGV[7], 0)
local org, weight = ARGV[8], tonumber(ARGV[9])
local rank, line_max = vector(ARGV[10], 0), tonumber(ARGV[11])
if owner_of(ticket) == nil then
  return redis.error_reply("COACH_BADARG ticket")
end
if not is_int_in(lane, 0, 2) then
  return redis.error_reply("COACH_BADARG lane")
end
if not are_ints_in(ask, DIMENSIONS, 0, 1e9) then
  return redis.error_reply("COACH_BADARG ask")
end
if not string.match(org, "^%S+$") then
  return redis.error_reply("COACH_BADARG org")
end
if weight == nil or not (weight >= 0.01 and weight <= 1000) then
  return redis.error_reply("COACH_BADARG weight")
end
if #rank ~= 0 and not are_ints_in(rank, 2, 0, 2 * LANE_RANKS) then
  return redis.error_reply("COACH_BADARG rank")
end
if not is_int_in(line_max, 1, 1e6) then
  return redis.error_reply("COACH_BADARG line_max")
end

begin()
local known = read_ticket(ticket)
local dimension = not known and refused_by(ask)
local quota = quota_said and packed(quota_said) or ""
local reply
if known and (known.state == "ended" or known.state == "lapsed") then
  reply = { "ended" }
elseif known and known.state == "admitted" then
  reply = { "admitted", packed(window.sum), quota }
elseif dimension then
  reply = { "too_large", dimension }
elseif not known and not next_before and gate_ms() == 0 and has_room(fitting(ask)) then
  admit_at_once(ticket, lane, ask, org)
  reply = { "admitted", packed(window.sum), quota }
elseif not known and redis.call("ZCARD", line_key) >= line_max then
  local ahead = outlook()
  reply = { "full", redis.call("ZCARD", line_key), ahead[1], ahead[2] }
else
  local record = known or enter(ticket, lane, ask, org, weight, #rank > 0 and rank or nil)
  local at = redis.call("ZRANK", line_key, member_of(ticket, record))
  for higher = 0, record.lane - 1 do
    at = at - count_of(higher)
  end
  local ahead = outlook()
  reply = {
    "queued", packed({ record.start, record.arrival }), places()(record.lane, at), ahead[1], ahead[2],
  }
end
finish("")
return reply
