--[[
budget_admit.lua: admit a request at once, or put its ticket into the line. Behind budget_line.lua,
which has KEYS and ARGV[1..3].

ARGV[4]  ticket    "<worker>:<n>", never used again
ARGV[5]  lane      0 interactive | 1 submission | 2 background
ARGV[6]  ask       "requests input output tokens", integers, 0..1e9; none above hard
ARGV[7]  rank      "" for a newcomer; the rank it had, for a ticket that fell out of the line
ARGV[8]  line_max  tickets that may wait

Returns  {"admitted", sum}  the window as it is now, "a b c d"
         {"queued", rank, position, wait_ms, each_ms}  in line; position from 1; outlook of the head
         {"full", length, wait_ms, each_ms}  nothing changed
         {"ended"}  the ticket was given back before (its caller had gone): nothing changed
         For a ticket that is known already (a retry) likewise, and nothing changes.
Errors   COACH_BADARG <name>. Nothing has been written.

Admitted at once: nobody waits, the gate is open, every dimension is below soft, and the ask keeps it
under hard.
]]
local ticket, lane, ask = ARGV[4], tonumber(ARGV[5]), vector(ARGV[6], 0)
local rank, line_max = ARGV[7], tonumber(ARGV[8])
if owner_of(ticket) == nil then
  return redis.error_reply("COACH_BADARG ticket")
end
if not is_int_in(lane, 0, 2) then
  return redis.error_reply("COACH_BADARG lane")
end
if not are_ints_in(ask, DIMENSIONS, 0, 1e9) then
  return redis.error_reply("COACH_BADARG ask")
end
if rank ~= "" and not is_int_in(tonumber(rank), 0, 3 * LANE_RANKS) then
  return redis.error_reply("COACH_BADARG rank")
end
if not is_int_in(line_max, 1, 1e6) then
  return redis.error_reply("COACH_BADARG line_max")
end

begin()
local known = read_ticket(ticket)
local reply
if known and known.state == "ended" then
  reply = { "ended" }
elseif known and known.state == "admitted" then
  reply = { "admitted", packed(window.sum) }
elseif not known and redis.call("ZCARD", line_key) == 0 and gate_ms() == 0 and has_room(ask) then
  admit(ticket, lane, ask)
  reply = { "admitted", packed(window.sum) }
elseif not known and redis.call("ZCARD", line_key) >= line_max then
  local ahead = outlook()
  reply = { "full", redis.call("ZCARD", line_key), ahead[1], ahead[2] }
else
  if not known then
    if rank == "" then
      rank = string.format("%.0f", lane * LANE_RANKS + now_us)
    end
    redis.call("ZADD", line_key, rank, ticket)
    write_ticket(ticket, "waiting", lane, 0, ask)
    lease("w:" .. owner_of(ticket), worker_lease_ms)
  end
  local at = redis.call("ZRANK", line_key, ticket)
  local ahead = outlook()
  local stored = string.format("%.0f", tonumber(redis.call("ZSCORE", line_key, ticket)))
  reply = { "queued", stored, at + 1, ahead[1], ahead[2] }
end
finish("")
return reply
