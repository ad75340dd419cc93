--[[
budget_pass.lua: a worker with tickets in line shows that it lives, admits those of its tickets that
may go now, and learns where the others stand. Behind budget_line.lua, which has KEYS and ARGV[1..4].

ARGV[5]  worker
ARGV[6]  is_full  1: say also where the others stand; 0: only who may go

Returns  {wait_ms, each_ms, is_mine, wake_id, sum, admitted, waiting, positions, quota}
         wait_ms    until the next in line may go; -1: when something is given back
         each_ms    from one admission to the next, roughly
         is_mine    1: the next is this worker's; 0: another's, or nobody waits
         wake_id    last entry of the wake stream, to read on from
         sum        the window as it is now, "a b c d"
         admitted   this worker's tickets that may go, in order
         waiting, positions  this worker's tickets still in line, and their places from 1; empty
                    unless is_full
         quota      what an operator said it is, "a b c d"; "" where nobody did
Errors   COACH_BADARG <name>. Nothing has been written.

In order: a ticket that is next and cannot go, or is another worker's, holds up all behind it. The
owner of one that comes up is woken through the stream, so that a worker admits only its own.
Cost     O(admissions); O(length of the line) when is_full
]]
local worker, is_full = ARGV[5], ARGV[6] == "1"
if worker == nil or worker == "" then
  return redis.error_reply("COACH_BADARG worker")
end
local PASS_MAX = 100 -- admissions in one go

-- First, or this worker's own lease might end in the very pass that renews it.
if redis.call("ZSCORE", leases_key, "w:" .. worker) then
  lease("w:" .. worker, worker_lease_ms)
end
begin()

local admitted, wait, each, is_mine = {}, 0, 0, 0
local credit = nil
while #admitted < PASS_MAX do
  local ticket, record, is_soft = next_in_line()
  if not ticket then
    is_mine = 0
    break
  end
  local rates = rates_now()
  credit = credit or credit_now(rates)
  is_mine = owner_of(ticket) == worker and 1 or 0
  wait, each = wait_ms(fitting(record.ask), is_soft, rates, credit), each_ms(record.ask)
  if is_mine == 0 or wait ~= 0 then
    break
  end
  admit_next(ticket, record)
  for d = 1, DIMENSIONS do
    credit[d] = credit[d] - record.ask[d]
  end
  admitted[#admitted + 1] = ticket
end
if #admitted > 0 then
  write_credit(now_ms, credit)
end

local waiting, positions = {}, {}
if is_full then
  local place, lane, before = places(), 0, 0
  local behind = count_of(0)
  for at, member in ipairs(redis.call("ZRANGE", line_key, 0, -1)) do
    while at > behind do
      lane, before = lane + 1, behind
      behind = behind + count_of(lane)
    end
    local ticket = ticket_of(member)
    if owner_of(ticket) == worker then
      waiting[#waiting + 1] = ticket
      positions[#positions + 1] = place(lane, at - 1 - before)
    end
  end
  if #waiting == 0 then
    redis.call("ZREM", leases_key, "w:" .. worker)
  end
end
finish(worker)
local last = redis.call("XREVRANGE", wake_key, "+", "-", "COUNT", 1)[1]
local quota = quota_said and packed(quota_said) or ""
return {
  wait, each, is_mine, last and last[1] or "0-0", packed(window.sum), admitted, waiting, positions, quota,
}
