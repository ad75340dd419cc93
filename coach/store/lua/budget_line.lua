--[[
budget_line.lua: an endpoint's spending, its waiting line, and who may go next. Not run by itself:
coach/budget/scripts.py puts it, behind budget_window.lua, before the other budget_* scripts.

KEYS[1]  spend:{endpoint}    HASH    window of 61 s: requests, input, output, tokens (input + output)
                                     gate    milliseconds of the Redis clock until when nobody may go
                                     credit  "ms a b c d": pacing, see below
KEYS[2]  line:{endpoint}     ZSET    ticket -> rank = lane * 2^51 + arrival in microseconds; lower is
                                     sooner; exact in a double until the year 2041
KEYS[3]  tickets:{endpoint}  HASH    ticket -> "state lane second a b c d"; state: waiting | admitted |
                                     ended; second and "a b c d": when it was admitted, what it asks
KEYS[4]  leases:{endpoint}   ZSET    "t:<ticket>" (not waiting), "w:<worker>" (has tickets that wait)
                                     -> end, milliseconds of the Redis clock
KEYS[5]  wake:{endpoint}     STREAM  {w: worker}: the head of the line is this worker's, and may go

ARGV[1]  hard     "a b c d": the window's limits; 0: no such limit
ARGV[2]  soft     likewise
ARGV[3]  times    "worker_lease_ms ticket_lease_ms ended_ms ttl_s"

A ticket is "<worker>:<n>". It is in line if and only if its state is waiting.

What an admitted ticket has reserved: requests, input and tokens in the bucket of the second when it
was admitted, since the provider counts them as they arrive; output in sum alone, without a bucket,
since the provider counts it as it is written, until now at the latest: settling puts what was written
into the bucket of the second of settling. So no 60 s of the provider's hold more than the limit,
however long answers take.

Pacing: a bare window, once full, goes on as it began: a burst, then silence until the burst has slid
out. So those who waited in line go at the highest rate that can go on without ever stopping: the
largest r with r * t <= what is free now + what slides out within t, for every t up to the window's
length. Waiting tickets go while their credit is not negative; it grows with r, to one second of it,
and never falls below a whole window's worth, which is the longest that anything can weigh.
What finds no line goes at once: a burst after an idle spell is not paced.
]]
local spend_key, line_key, tickets_key, leases_key, wake_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local DIMENSIONS, WINDOW_S, OUTPUT = 4, 61, 3
local LANE_RANKS = 2251799813685248 -- 2^51
local BACKGROUND = 2
local WAKE_MAX = 128 -- entries; one that is missed costs a worker its next renewal at most

local hard, soft, times = vector(ARGV[1], 0), vector(ARGV[2], 0), vector(ARGV[3], 0)
if not are_ints_in(hard, DIMENSIONS, 0, 1e12) then
  return redis.error_reply("COACH_BADARG hard")
end
if not are_ints_in(soft, DIMENSIONS, 0, 1e12) then
  return redis.error_reply("COACH_BADARG soft")
end
if not are_ints_in(times, 4, 1, 1e9) then
  return redis.error_reply("COACH_BADARG times")
end
local worker_lease_ms, ticket_lease_ms, ended_ms, ttl_s = times[1], times[2], times[3], times[4]

local time = redis.call("TIME")
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local window -- opened by begin(), after the script has checked its own arguments
local head_before, may_go = nil, false

local function head_of_line()
  return redis.call("ZRANGE", line_key, 0, 0)[1]
end

local function owner_of(ticket)
  return string.match(ticket, "^(.*):[^:]*$")
end

local function read_ticket(ticket)
  local text = redis.call("HGET", tickets_key, ticket)
  if not text then
    return nil
  end
  local state, rest = string.match(text, "^(%a+) ?(.*)$")
  local values = vector(rest, 2 + DIMENSIONS)
  return {
    state = state,
    lane = values[1],
    second = values[2],
    ask = { values[3], values[4], values[5], values[6] },
  }
end

local function write_ticket(ticket, state, lane, second, ask)
  local text = string.format("%s %.0f %.0f %s", state, lane, second, packed(ask))
  redis.call("HSET", tickets_key, ticket, text)
end

local function lease(member, lease_ms)
  redis.call("ZADD", leases_key, string.format("%.0f", now_ms + lease_ms), member)
end

-- Replace what an admitted ticket has reserved by what it has used; used nil: nothing.
local function settle_window(record, used)
  used = used or { 0, 0, 0, 0 }
  local change = {}
  for d = 1, DIMENSIONS do
    change[d] = used[d] - record.ask[d]
  end
  change[OUTPUT] = 0
  spend(window, record.second, change)
  window.sum[OUTPUT] = math.max(0, window.sum[OUTPUT] - record.ask[OUTPUT])
  if used[OUTPUT] > 0 then
    spend(window, window.now_s, { 0, 0, used[OUTPUT], 0 })
  end
  may_go = true
end

local function admit(ticket, lane, ask)
  redis.call("ZREM", line_key, ticket)
  spend(window, window.now_s, { ask[1], ask[2], 0, ask[4] })
  window.sum[OUTPUT] = window.sum[OUTPUT] + ask[OUTPUT]
  write_ticket(ticket, "admitted", lane, window.now_s, ask)
  lease("t:" .. ticket, ticket_lease_ms)
end

-- Take the dead out: workers whose lease ended leave the line; tickets are refunded, or forgotten.
local function begin()
  window = open_window(spend_key, DIMENSIONS, WINDOW_S, now_ms)
  head_before = head_of_line()
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", leases_key, "-inf", now_ms, "LIMIT", 0, 100)) do
    redis.call("ZREM", leases_key, member)
    local name = string.sub(member, 3)
    if string.sub(member, 1, 2) == "w:" then
      for _, ticket in ipairs(redis.call("ZRANGE", line_key, 0, -1)) do
        if owner_of(ticket) == name then
          redis.call("ZREM", line_key, ticket)
          redis.call("HDEL", tickets_key, ticket)
        end
      end
    else
      local record = read_ticket(name)
      if record and record.state == "admitted" then
        settle_window(record, nil)
      end
      redis.call("HDEL", tickets_key, name)
    end
  end
end

-- Milliseconds until the gate opens; 0: it is open.
local function gate_ms()
  local gate = tonumber(redis.call("HGET", spend_key, "gate"))
  return gate and math.max(0, gate - now_ms) or 0
end

-- Write the window, keep the keys alive, and wake whoever is at the head now.
-- Called last by every script that writes; `self` is the worker that will look anyhow.
local function finish(self)
  local head = head_of_line()
  if head and (may_go or head ~= head_before) and owner_of(head) ~= self then
    redis.call("XADD", wake_key, "MAXLEN", WAKE_MAX, "*", "w", owner_of(head))
    redis.call("EXPIRE", wake_key, ttl_s)
  end
  close_window(window, math.max(ttl_s, math.ceil(gate_ms() / 1000) + WINDOW_S))
  redis.call("EXPIRE", line_key, ttl_s)
  redis.call("EXPIRE", tickets_key, ttl_s)
  redis.call("EXPIRE", leases_key, ttl_s)
end

-- Whether the ask fits at this moment, pacing aside.
local function has_room(ask)
  for d = 1, DIMENSIONS do
    if hard[d] > 0 and (window.sum[d] >= soft[d] or window.sum[d] + ask[d] > hard[d]) then
      return false
    end
  end
  return true
end

-- What can be spent per second of a dimension without ever having to stop; nil: unlimited.
local function rate_of(d)
  if hard[d] == 0 then
    return nil
  end
  local free, rate = hard[d] - window.sum[d], math.huge
  for t, values in ipairs(seconds_of(window)) do
    if values then
      free = free + values[d]
    end
    rate = math.min(rate, free / t)
  end
  return math.max(0, rate)
end

-- The credit per dimension at this moment, given the rates.
local function credit_now(rates)
  local stored = vector(redis.call("HGET", spend_key, "credit"), 0)
  local passed_s = stored[1] and math.max(0, now_ms - stored[1]) / 1000 or 1
  local credit = {}
  for d = 1, DIMENSIONS do
    local rate = rates[d]
    credit[d] = rate and math.min((stored[1 + d] or 0) + rate * passed_s, rate) or 0
  end
  return credit
end

local function write_credit(at_ms, credit)
  local texts = { string.format("%.0f", at_ms) }
  for d = 1, DIMENSIONS do
    texts[1 + d] = string.format("%.3f", hard[d] > 0 and math.max(-hard[d], credit[d]) or 0)
  end
  redis.call("HSET", spend_key, "credit", table.concat(texts, " "))
end

-- Milliseconds until the head of the line may go; 0: now; -1: when something is given back.
local function wait_ms(record, rates, credit)
  local wait = gate_ms()
  for d = 1, DIMENSIONS do
    if hard[d] > 0 then
      local ms = slide_ms(window, d, record.ask[d], hard[d])
      if ms ~= -1 and record.lane == BACKGROUND then
        local quiet_ms = slide_ms(window, d, 1, soft[d])
        ms = quiet_ms == -1 and -1 or math.max(ms, quiet_ms)
      end
      if ms == -1 then
        return -1
      end
      if credit[d] < 0 then
        -- At rate 0 something has to slide out first; a second later there is more to see.
        local due_ms = rates[d] > 0 and math.ceil(-credit[d] / rates[d] * 1000) or 1000
        ms = math.max(ms, math.min(due_ms, 1000))
      end
      wait = math.max(wait, ms)
    end
  end
  return wait
end

-- Milliseconds from one admission to the next, if all ask as much as this one.
local function each_ms(ask)
  local seconds = 0
  for d = 1, DIMENSIONS do
    if hard[d] > 0 then
      seconds = math.max(seconds, ask[d] * WINDOW_S / hard[d])
    end
  end
  return math.ceil(seconds * 1000)
end

-- When the head may go, and how far behind it the others are: {wait_ms, each_ms}.
local function outlook()
  local head = head_of_line()
  local record = head and read_ticket(head)
  if not record then
    return { 0, 0 }
  end
  local rates = {}
  for d = 1, DIMENSIONS do
    rates[d] = rate_of(d)
  end
  return { wait_ms(record, rates, credit_now(rates)), each_ms(record.ask) }
end

