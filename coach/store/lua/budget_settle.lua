--[[
budget_settle.lua: end a ticket: out of the line, or its reservation replaced by what was really used.
Behind budget_line.lua, which has KEYS and ARGV[1..4].

ARGV[5]  ticket
ARGV[6]  used    "requests input output tokens", integers, 0..1e9; "0 0 0 0": nothing was sent

Returns  "left" (it waited) | "settled" | "lapsed" | "ended" (before; nothing changes) | "unknown"
         Lapsed ones are charged what they used beyond what they have been charged. Unknown tickets,
         whose caller gave up before they came here, are charged what they used now; and they are
         ended, so that an admission that comes late cannot revive them.
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local ticket, used = ARGV[5], vector(ARGV[6], 0)
if ticket == nil or owner_of(ticket) == nil then
  return redis.error_reply("COACH_BADARG ticket")
end
if not are_ints_in(used, DIMENSIONS, 0, 1e9) then
  return redis.error_reply("COACH_BADARG used")
end

begin()
local record, reply = read_ticket(ticket), nil
if record and record.state == "ended" then
  reply = "ended"
else
  if record and record.state == "admitted" then
    end_admitted(record, used)
    reply = "settled"
  elseif record and record.state == "lapsed" then
    local more = {}
    for d = 1, DIMENSIONS do
      more[d] = math.max(0, used[d] - record.ask[d])
    end
    charge(more)
    reply = "lapsed"
  elseif record then
    leave(ticket, record)
    reply = "left"
  else
    charge(used)
    reply = "unknown"
  end
  redis.call("HSET", tickets_key, ticket, "ended")
  lease("t:" .. ticket, ended_ms)
end
finish("")
return reply
