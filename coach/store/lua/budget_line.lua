--[[
budget_line.lua: an endpoint's waiting line: its tickets, and who is next. Not run by itself:
coach/store/scripts.py puts it, behind budget_quota.lua, before the other budget_* scripts.

KEYS[2]  line:{endpoint}     ZSET    "<arrival>|<ticket>" -> lane * 2^51 + start; lower is sooner;
                                     arrival: 16 digits, microseconds of the Redis clock
KEYS[3]  tickets:{endpoint}  HASH    ticket -> "state lane second a b c d start span arrival org";
                                     state: waiting | admitted | lapsed (its worker is gone) | ended
                                     (without the rest); second: when it was admitted; "a b c d":
                                     what it asks, once admitted what it has reserved, once lapsed
                                     what it was charged
KEYS[4]  leases:{endpoint}   ZSET    "t:<ticket>" (not waiting), "w:<worker>" (has tickets that wait)
                                     -> end, milliseconds of the Redis clock
KEYS[5]  wake:{endpoint}     STREAM  {w: worker}: the next in line is this worker's, and may go
KEYS[6]  shares:{endpoint}   HASH    "<lane> <org>" -> "finish last refund"; clock "a b c" and top
                                     "a b c" per lane; owed "a b": submission, background; mean: the
                                     cost of an admission of late. Gone when nobody waits any more,
                                     so as large as there were orgs in line since, 100 bytes each

A ticket is "<worker>:<n>". It is in line if and only if its state is waiting.

Lanes: interactive before submission before background. While a lower lane waits, all that is let in
earns it its share of that (ARGV[4]); its first ticket is next when the lane is owed what it asks for. Background that is not owed it goes below soft only: it soaks up what is left.

Within a lane, start-time fair queueing (Goyal, Vin, Cheng, SIGCOMM 1996): a ticket starts where its
org's last one finishes, and no earlier than the lane's clock, which is the start of the last one
admitted; it finishes its span later: the largest share of any limit that it asks for, divided by its
org's weight. Lower starts go first, then who came first. A ticket that leaves unadmitted gives its span
back to its org's next ones, which never pass their org's earlier ones for it.
]]
local UNIT = 16777216 -- 2^24: the cost of what asks for all of a limit
local LANE_RANKS = 2251799813685248 -- 2^51
local LANES = 3
local WALK = 32 -- places of which the order over the lanes is worked out ticket by ticket
local WAKE_MAX = 128 -- entries; one that is missed costs a worker its next look at most
local next_before = nil

local function owner_of(ticket)
  return string.match(ticket, "^(.*):[^:]*$")
end

local function ticket_of(member)
  return string.match(member, "^%d+|(.*)$")
end

local function member_of(ticket, record)
  return string.format("%016.0f|%s", record.arrival, ticket)
end

local function read_ticket(ticket)
  local text = redis.call("HGET", tickets_key, ticket)
  if not text then
    return nil
  end
  local state, numbers, org = string.match(text, "^(%a+) (.*) (%S+)$")
  if not state then
    return { state = text }
  end
  local v = vector(numbers, 5 + DIMENSIONS)
  return {
    state = state,
    lane = v[1],
    second = v[2],
    ask = { v[3], v[4], v[5], v[6] },
    start = v[7],
    span = v[8],
    arrival = v[9],
    org = org,
  }
end

local function write_ticket(ticket, state, r)
  local numbers = packed({
    r.lane, r.second, r.ask[1], r.ask[2], r.ask[3], r.ask[4], r.start, r.span, r.arrival,
  })
  redis.call("HSET", tickets_key, ticket, state .. " " .. numbers .. " " .. r.org)
end

local function lease(member, lease_ms)
  redis.call("ZADD", leases_key, string.format("%.0f", now_ms + lease_ms), member)
end

-- The largest share of any limit, in units; the same for all where nothing is limited.
local function cost_of(ask)
  local share = 0
  for d = 1, DIMENSIONS do
    if hard[d] > 0 then
      share = math.max(share, ask[d] / hard[d])
    end
  end
  return share > 0 and math.max(1, math.ceil(share * UNIT)) or 1024
end

local function read_shares(field, width)
  return vector(redis.call("HGET", shares_key, field), width)
end

local function count_of(lane)
  local first = string.format("%.0f", lane * LANE_RANKS)
  local behind = string.format("(%.0f", (lane + 1) * LANE_RANKS)
  return redis.call("ZCOUNT", line_key, first, behind)
end

local function members_of(lane, count)
  local first = string.format("%.0f", lane * LANE_RANKS)
  local behind = string.format("(%.0f", (lane + 1) * LANE_RANKS)
  return redis.call("ZRANGEBYSCORE", line_key, first, behind, "LIMIT", 0, count)
end

-- Earn lower lanes their share of `cost`, which a ticket of `lane` is let in for; waits[lane]: whether
-- somebody waits there.
local function earn(owed, lane, cost, waits)
  for lower = 1, LANES - 1 do
    if waits[lower] then
      local paid = lane == lower and cost or 0
      owed[lower] = math.max(0, owed[lower] + cost * policy[1 + lower] / 100 - paid)
    else
      owed[lower] = 0
    end
  end
end

-- The lane that is next, given the cost of each lane's first ticket (nil: nobody waits there), and
-- whether it was owed it; nil where nobody waits.
local function next_lane(costs, owed)
  local top = nil
  for lane = 0, LANES - 1 do
    if costs[lane] and not top then
      top = lane
    elseif costs[lane] and owed[lane] >= costs[lane] then
      return lane, true
    end
  end
  return top, top and top > 0 and owed[top] >= costs[top]
end

-- Who is next: ticket, record, and whether only below soft; nil where nobody waits.
local function next_in_line()
  local first = redis.call("ZRANGE", line_key, 0, 0)[1]
  if not first then
    return nil
  end
  local name = ticket_of(first)
  local record = read_ticket(name)
  local count = redis.call("ZCARD", line_key)
  if record.lane < BACKGROUND and count > 1 and count > count_of(record.lane) then
    local names, records, costs = { [record.lane] = name }, { [record.lane] = record }, {}
    costs[record.lane] = cost_of(record.ask)
    for lane = record.lane + 1, LANES - 1 do
      local member = members_of(lane, 1)[1]
      if member then
        names[lane] = ticket_of(member)
        records[lane] = read_ticket(names[lane])
        costs[lane] = cost_of(records[lane].ask)
      end
    end
    local lane, is_owed = next_lane(costs, read_shares("owed", 2))
    return names[lane], records[lane], lane == BACKGROUND and not is_owed
  end
  return name, record, record.lane == BACKGROUND
end

-- Put a ticket into the line. rank nil: a newcomer; else {start, arrival}, where it stood before.
local function enter(ticket, lane, ask, org, weight, rank)
  if redis.call("ZCARD", line_key) == 0 then
    redis.call("DEL", shares_key)
  end
  local flow = lane .. " " .. org
  local known = redis.call("HMGET", shares_key, "clock", "top", flow)
  local clock, top = vector(known[1], LANES), vector(known[2], LANES)
  local mine = vector(known[3], 3) -- finish, last, refund
  if count_of(lane) == 0 then
    clock[1 + lane] = math.max(clock[1 + lane], top[1 + lane], rank and rank[1] or 0)
    mine = { 0, 0, 0 }
  end
  local record = {
    lane = lane,
    second = 0,
    ask = ask,
    span = math.max(1, math.ceil(cost_of(ask) / weight)),
    arrival = rank and rank[2] or now_us,
    org = org,
  }
  if rank then
    record.start = rank[1]
    mine[1] = math.max(mine[1], record.start + record.span)
    mine[2] = math.max(mine[2], record.start)
  else
    local due = math.max(clock[1 + lane], mine[1] - mine[3])
    record.start = math.max(due, mine[2])
    mine = { record.start + record.span, record.start, record.start - due }
  end
  top[1 + lane] = math.max(top[1 + lane], mine[1])
  redis.call("HSET", shares_key, "clock", packed(clock), "top", packed(top), flow, packed(mine))
  redis.call(
    "ZADD", line_key, string.format("%.0f", lane * LANE_RANKS + record.start), member_of(ticket, record)
  )
  write_ticket(ticket, "waiting", record)
  lease("w:" .. owner_of(ticket), worker_lease_ms)
  return record
end

-- Take a waiting ticket out, unadmitted.
local function leave(ticket, record)
  redis.call("ZREM", line_key, member_of(ticket, record))
  local flow = record.lane .. " " .. record.org
  local mine = read_shares(flow, 3)
  redis.call("HSET", shares_key, flow, packed({ mine[1], mine[2], mine[3] + record.span }))
end

local function begin_ticket(ticket, record)
  record.second = window.now_s
  record.ask = fitting(record.ask)
  reserve(record.ask)
  write_ticket(ticket, "admitted", record)
  lease("t:" .. ticket, ticket_lease_ms)
end

-- Let a ticket in that nobody had to wait before.
local function admit_at_once(ticket, lane, ask, org)
  local record = { lane = lane, ask = ask, start = 0, span = 0, arrival = now_us, org = org }
  begin_ticket(ticket, record)
end

-- Let the next in line in.
local function admit_next(ticket, record)
  redis.call("ZREM", line_key, member_of(ticket, record))
  local known = redis.call("HMGET", shares_key, "clock", "owed", "mean")
  local clock, owed, mean = vector(known[1], LANES), vector(known[2], 2), tonumber(known[3])
  local cost, waits = cost_of(record.ask), {}
  for lower = 1, LANES - 1 do
    waits[lower] = count_of(lower) > 0
  end
  earn(owed, record.lane, cost, waits)
  clock[1 + record.lane] = math.max(clock[1 + record.lane], record.start)
  mean = mean and mean + (cost - mean) / 16 or cost
  redis.call(
    "HSET", shares_key, "clock", packed(clock), "owed", packed(owed), "mean", string.format("%.0f", mean)
  )
  begin_ticket(ticket, record)
end

local function end_admitted(record, used)
  release(record.second, record.ask, used)
  refund_credit(record.ask, used)
end

-- End a ticket that nobody has prolonged. What it asked may have arrived at the provider and is
-- charged; what was to be written is given back, as nobody knows, and nobody waits for it. Should its
-- worker only have slept, it will say what was used while anybody can still count it.
local function lapse(ticket, record)
  local charged = { record.ask[1], record.ask[2], 0, record.ask[4] }
  end_admitted(record, charged)
  record.ask = charged
  write_ticket(ticket, "lapsed", record)
  lease("t:" .. ticket, WINDOW_S * 1000)
end

-- Open the spending, and take the dead out: workers whose lease ended leave the line, their tickets
-- lapse; tickets that have ended are forgotten.
local function begin()
  open_spending()
  next_before = next_in_line()
  for _, member in ipairs(redis.call("ZRANGEBYSCORE", leases_key, "-inf", now_ms, "LIMIT", 0, 100)) do
    redis.call("ZREM", leases_key, member)
    local name = string.sub(member, 3)
    if string.sub(member, 1, 2) == "w:" then
      for _, waiting in ipairs(redis.call("ZRANGE", line_key, 0, -1)) do
        local ticket = ticket_of(waiting)
        if owner_of(ticket) == name then
          leave(ticket, read_ticket(ticket))
          redis.call("HDEL", tickets_key, ticket)
        end
      end
    else
      local record = read_ticket(name)
      if record and record.state == "admitted" then
        lapse(name, record)
      else
        redis.call("HDEL", tickets_key, name)
      end
    end
  end
end

-- Write the spending, keep the keys alive, and wake whoever is next now.
-- Called last by every script that writes; `self` is the worker that will look anyhow.
local function finish(self)
  local ticket = next_in_line()
  if ticket and (may_go or ticket ~= next_before) and owner_of(ticket) ~= self then
    redis.call("XADD", wake_key, "MAXLEN", WAKE_MAX, "*", "w", owner_of(ticket))
    redis.call("EXPIRE", wake_key, ttl_s)
  end
  close_spending(math.max(ttl_s, math.ceil(gate_ms() / 1000) + WINDOW_S))
  redis.call("EXPIRE", line_key, ttl_s)
  redis.call("EXPIRE", tickets_key, ttl_s)
  redis.call("EXPIRE", leases_key, ttl_s)
  redis.call("EXPIRE", shares_key, ttl_s)
end

-- Milliseconds from one admission to the next, if all ask for as much as those of late.
local function each_ms(ask)
  local mean = tonumber(redis.call("HGET", shares_key, "mean")) or cost_of(ask)
  return math.max(1, math.ceil(mean / UNIT * WINDOW_S * 1000))
end

-- When the next in line may go, and how far behind it the others are: {wait_ms, each_ms}.
local function outlook()
  local ticket, record, is_soft = next_in_line()
  if not ticket then
    return { 0, 0 }
  end
  local rates = rates_now()
  return { wait_ms(fitting(record.ask), is_soft, rates, credit_now(rates)), each_ms(record.ask) }
end

-- A function from a lane and an index in it (from 0) to the place in line (from 1), if nobody comes.
-- The first WALK are exact; of those behind them higher lanes come before lower ones.
local function places()
  local counts, waiting, total = {}, 0, 0
  for lane = 0, LANES - 1 do
    counts[lane] = count_of(lane)
    waiting = waiting + (counts[lane] > 0 and 1 or 0)
    total = total + counts[lane]
  end
  local at, taken, walked = { [0] = {}, {}, {} }, { [0] = 0, 0, 0 }, 0
  if waiting > 1 then
    local owed, members, costs = read_shares("owed", 2), {}, {}
    local function look(lane)
      local member = members[lane][1 + taken[lane]]
      costs[lane] = member and cost_of(read_ticket(ticket_of(member)).ask) or nil
    end
    for lane = 0, LANES - 1 do
      members[lane] = members_of(lane, WALK)
      look(lane)
    end
    while walked < math.min(WALK, total) do
      local lane, cost = next_lane(costs, owed), 0
      walked, cost = walked + 1, costs[lane]
      at[lane][taken[lane]] = walked
      taken[lane] = taken[lane] + 1
      local waits = { counts[1] > taken[1], counts[2] > taken[2] }
      earn(owed, lane, cost, waits)
      look(lane)
    end
  end
  return function(lane, index)
    local place = at[lane][index]
    if not place then
      place = walked + 1 + index - taken[lane]
      for higher = 0, lane - 1 do
        place = place + counts[higher] - taken[higher]
      end
    end
    return place
  end
end
