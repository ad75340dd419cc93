--[[
budget_settle.lua: end a ticket: out of the line, or its reservation replaced by what was really used.
Behind budget_line.lua, which has KEYS and ARGV[1..3].

ARGV[4]  ticket
ARGV[5]  used    "requests input output tokens", integers, 0..1e9; "0 0 0 0": nothing was sent

Returns  "left" (it waited) | "settled" | "ended" (before; nothing changes) | "unknown"
         Unknown tickets, whose lease has ended or whose caller gave up before they came here, are
         charged what they used now; and they are ended, so that an admission that comes late cannot
         revive them.
Errors   COACH_BADARG <name>. Nothing has been written.
]]
local ticket, used = ARGV[4], vector(ARGV[5], 0)
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
    settle_window(record, used)
    if redis.call("HEXISTS", spend_key, "credit") == 1 then
      local stored, credit = vector(redis.call("HGET", spend_key, "credit"), 1 + DIMENSIONS), {}
      for d = 1, DIMENSIONS do
        -- What was asked for and not used was paid for with credit that others may have.
        credit[d] = stored[1 + d] + record.ask[d] - used[d]
      end
      write_credit(stored[1], credit)
    end
    reply = "settled"
  elseif record then
    redis.call("ZREM", line_key, ticket)
    reply = "left"
  else
    spend(window, window.now_s, used)
    reply = "unknown"
  end
  write_ticket(ticket, "ended", 0, 0, { 0, 0, 0, 0 })
  lease("t:" .. ticket, ended_ms)
end
finish("")
return reply
