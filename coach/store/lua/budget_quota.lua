--[[
budget_quota.lua: what an endpoint has spent, and how much may be spent now. Not run by itself:
coach/store/scripts.py puts it, behind budget_window.lua, before the other budget_* scripts.

KEYS[1]  spend:{endpoint}    HASH    rule "window": window of 61 s: requests, input, output, tokens
                                     (input + output), and credit "ms a b c d": pacing, see below;
                                     rule "bucket": level "ms a b c d", held "a b c d", see below;
                                     gate    milliseconds of the Redis clock until when nobody may go
KEYS[7]  quota:{endpoint}    HASH    an operator's word, while it lasts: quota, hard, soft "a b c d" as
                                     ARGV; may_exceed 1: they count even where they are above those

ARGV[1]  hard     "a b c d": what is never exceeded; 0: no such limit
ARGV[2]  soft     likewise: from here on requests wait in line
ARGV[3]  times    "worker_lease_ms ticket_lease_ms ended_ms ttl_s"
ARGV[4]  policy   "rule submission background": 0 window | 1 bucket; what the line keeps for the two
                  lower lanes, per cent (budget_line.lua)

Rule "window": no 60 s, however cut, hold more than hard. What an admitted ticket has reserved:
requests, input and tokens in the bucket of the second when it was admitted, since the provider counts
them as they arrive; output in sum alone, without a bucket, since the provider counts it as it is
written, until now at the latest: settling puts what was written into the bucket of the second of
settling. So no 60 s of the provider's hold more than the limit, however long answers take.

Pacing: a bare window, once full, goes on as it began: a burst, then silence until the burst has slid
out. So those who waited in line go at the highest rate that can go on without ever stopping: the
largest r with r * t <= what is free now + what slides out within t, for every t up to the window's
length. Waiting tickets go while their credit is not negative; it grows with r, to one second of it,
and never falls below a whole window's worth, which is the longest that anything can weigh.
What finds no line goes at once: a burst after an idle spell is not paced.

Rule "bucket": a bucket of hard that is refilled continuously, hard in 60 s, as the provider's own.
What runs is held beside it, and taken out of it when it settles: later than the provider does, so that
the provider's bucket is never emptier than this one. Nothing has to be paced: under overload there is
as much to spend as flows in.
]]
local spend_key, line_key, tickets_key, leases_key, wake_key = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local shares_key, quota_key = KEYS[6], KEYS[7]
local DIMENSIONS, WINDOW_S, OUTPUT = 4, 61, 3
local DIMENSION_NAMES = { "requests", "input", "output", "tokens" }
local BACKGROUND = 2

local hard, soft, times = vector(ARGV[1], 0), vector(ARGV[2], 0), vector(ARGV[3], 0)
local policy = vector(ARGV[4], 0)
if not are_ints_in(hard, DIMENSIONS, 0, 1e12) then
  return redis.error_reply("COACH_BADARG hard")
end
if not are_ints_in(soft, DIMENSIONS, 0, 1e12) then
  return redis.error_reply("COACH_BADARG soft")
end
if not are_ints_in(times, 4, 1, 1e9) then
  return redis.error_reply("COACH_BADARG times")
end
if not are_ints_in(policy, 3, 0, 100) then
  return redis.error_reply("COACH_BADARG policy")
end
local worker_lease_ms, ticket_lease_ms, ended_ms, ttl_s = times[1], times[2], times[3], times[4]
local is_bucket = policy[1] == 1

local time = redis.call("TIME")
local now_us = time[1] * 1000000 + time[2]
local now_ms = math.floor(now_us / 1000)
local window -- opened by begin(), after the script has checked its own arguments
local may_go = false -- something has been given back

local said = redis.call("HMGET", quota_key, "quota", "hard", "soft", "may_exceed")
local quota_said = said[1] and vector(said[1], DIMENSIONS) or nil
if quota_said then
  local hard_said, soft_said = vector(said[2], DIMENSIONS), vector(said[3], DIMENSIONS)
  for d = 1, DIMENSIONS do
    -- Where the operator's word has no limit, the settings' counts.
    if hard_said[d] > 0 and (hard[d] == 0 or hard_said[d] < hard[d] or said[4] == "1") then
      hard[d], soft[d] = hard_said[d], soft_said[d]
    end
  end
end

-- What a request reserves: what it asks for, or what fits where nothing else runs, since the output
-- is a bound that is hardly ever reached.
local function fitting(ask)
  local fits = {}
  for d = 1, DIMENSIONS do
    fits[d] = hard[d] > 0 and math.min(ask[d], hard[d]) or ask[d]
  end
  return fits
end

-- The dimension whose quota, as the operator says, the input alone exceeds; nil: none.
local function refused_by(ask)
  if quota_said then
    local input = { [2] = ask[2], [4] = ask[2] }
    for d, amount in pairs(input) do
      if quota_said[d] > 0 and amount > quota_said[d] then
        return DIMENSION_NAMES[d]
      end
    end
  end
  return nil
end

local function refill_ms(d)
  return hard[d] / ((WINDOW_S - 1) * 1000)
end

local function open_bucket()
  local raw = redis.call("HMGET", spend_key, "level", "held")
  local level, held = vector(raw[1], 1 + DIMENSIONS), vector(raw[2], DIMENSIONS)
  local passed_ms = raw[1] and math.max(0, now_ms - level[1]) or 0
  local w = { now_s = math.floor(now_ms / 1000), level = {}, held = held, sum = {} }
  for d = 1, DIMENSIONS do
    w.level[d] = hard[d] > 0 and math.max(0, level[1 + d] - passed_ms * refill_ms(d)) or 0
    w.sum[d] = math.ceil(w.level[d]) + held[d]
  end
  return w
end

local function close_bucket(w, key_ttl_s)
  local texts = { string.format("%.0f", now_ms) }
  for d = 1, DIMENSIONS do
    texts[1 + d] = string.format("%.3f", w.level[d])
  end
  redis.call("HSET", spend_key, "level", table.concat(texts, " "), "held", packed(w.held))
  redis.call("EXPIRE", spend_key, key_ttl_s)
end

local function open_spending()
  window = is_bucket and open_bucket() or open_window(spend_key, DIMENSIONS, WINDOW_S, now_ms)
end

local function close_spending(key_ttl_s)
  if is_bucket then
    close_bucket(window, key_ttl_s)
  else
    close_window(window, key_ttl_s)
  end
end

-- Spend now, without a reservation.
local function charge(amounts)
  if not is_bucket then
    spend(window, window.now_s, amounts)
    return
  end
  for d = 1, DIMENSIONS do
    if hard[d] > 0 then
      window.level[d] = window.level[d] + amounts[d]
      window.sum[d] = math.ceil(window.level[d]) + window.held[d]
    end
  end
end

local function reserve(ask)
  if is_bucket then
    for d = 1, DIMENSIONS do
      window.held[d], window.sum[d] = window.held[d] + ask[d], window.sum[d] + ask[d]
    end
    return
  end
  spend(window, window.now_s, { ask[1], ask[2], 0, ask[4] })
  window.sum[OUTPUT] = window.sum[OUTPUT] + ask[OUTPUT]
end

-- Replace what was reserved in a second by what was used.
local function release(second, ask, used)
  may_go = true
  if is_bucket then
    for d = 1, DIMENSIONS do
      local held = math.min(ask[d], window.held[d])
      window.held[d], window.sum[d] = window.held[d] - held, window.sum[d] - held
    end
    charge(used)
    return
  end
  local change = {}
  for d = 1, DIMENSIONS do
    change[d] = used[d] - ask[d]
  end
  change[OUTPUT] = 0
  spend(window, second, change)
  window.sum[OUTPUT] = math.max(0, window.sum[OUTPUT] - ask[OUTPUT])
  if used[OUTPUT] > 0 then
    spend(window, window.now_s, { 0, 0, used[OUTPUT], 0 })
  end
end

-- Milliseconds until the gate opens; 0: it is open.
local function gate_ms()
  local gate = tonumber(redis.call("HGET", spend_key, "gate"))
  return gate and math.max(0, gate - now_ms) or 0
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

-- Milliseconds until `amount` fits under `limit` by what slides out or flows in; 0: now; -1: it
-- takes something that is given back.
local function room_ms(d, amount, limit)
  if not is_bucket then
    return slide_ms(window, d, amount, limit)
  end
  local excess = window.sum[d] + amount - limit
  if excess <= 0 then
    return 0
  end
  return excess > math.ceil(window.level[d]) and -1 or math.ceil(excess / refill_ms(d))
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

local function rates_now()
  local rates = {}
  if not is_bucket then
    for d = 1, DIMENSIONS do
      rates[d] = rate_of(d)
    end
  end
  return rates
end

-- The credit per dimension at this moment, given the rates.
local function credit_now(rates)
  local stored = vector(not is_bucket and redis.call("HGET", spend_key, "credit"), 0)
  local passed_s = stored[1] and math.max(0, now_ms - stored[1]) / 1000 or 1
  local credit = {}
  for d = 1, DIMENSIONS do
    local rate = rates[d]
    credit[d] = rate and math.min((stored[1 + d] or 0) + rate * passed_s, rate) or 0
  end
  return credit
end

local function write_credit(at_ms, credit)
  if is_bucket then
    return
  end
  local texts = { string.format("%.0f", at_ms) }
  for d = 1, DIMENSIONS do
    texts[1 + d] = string.format("%.3f", hard[d] > 0 and math.max(-hard[d], credit[d]) or 0)
  end
  redis.call("HSET", spend_key, "credit", table.concat(texts, " "))
end

-- What was asked for and not used was paid for with credit that others may have.
local function refund_credit(ask, used)
  local text = not is_bucket and redis.call("HGET", spend_key, "credit")
  if text then
    local stored, credit = vector(text, 1 + DIMENSIONS), {}
    for d = 1, DIMENSIONS do
      credit[d] = stored[1 + d] + ask[d] - used[d]
    end
    write_credit(stored[1], credit)
  end
end

-- Milliseconds until what asks for so much may go; 0: now; -1: when something is given back.
-- is_soft: only below the soft share.
local function wait_ms(ask, is_soft, rates, credit)
  local wait = gate_ms()
  for d = 1, DIMENSIONS do
    if hard[d] > 0 then
      local ms = room_ms(d, ask[d], hard[d])
      if ms ~= -1 and is_soft then
        local quiet_ms = room_ms(d, 1, soft[d])
        ms = quiet_ms == -1 and -1 or math.max(ms, quiet_ms)
      end
      if ms == -1 then
        return -1
      end
      if not is_bucket and credit[d] < 0 then
        -- At rate 0 something has to slide out first; a second later there is more to see.
        local due_ms = rates[d] > 0 and math.ceil(-credit[d] / rates[d] * 1000) or 1000
        ms = math.max(ms, math.min(due_ms, 1000))
      end
      wait = math.max(wait, ms)
    end
  end
  return wait
end
