--[[
limit_window.lua: the windows of a user and of their org, the leases on what is reserved in them, and
the limits of both. Behind budget_window.lua, and not run by itself: coach/store/scripts.py puts it
before every limit_* script.

A window is one of budget_window.lua, of 60 s, with requests and tokens. A request counts in the
second of the Redis clock in which it was let in, and from then for 60 s: first what was reserved,
then what it really used. So one that runs for longer has slid out when it ends, and counts once.

Beside each window stand its leases, a ZSET: for each reservation that is not settled a member
"<id> <second> <tokens>", by the millisecond in which its lease ends. Whichever script opens the
window next after that takes the reservation out: its owner is dead. Should the owner live after
all, renewing puts it in again, and settling puts in what was used. Leases that end later than two
leases from now were given before the clock was set back, and have ended too.

Rules are a HASH of what the operators have set, "<requests> <tokens> …" with "-" for what is not:
  user:<user>  that user's limits
  users        those of each user of the org who has none of their own
  org          those of the org as a whole
They end 400 days after the last script that has read them.

Cost  per open window two look-ups in the leases, O(log n); O(1) for each lease that has ended.
]]
local WINDOW_S, RULES_S = 60, 34560000
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function lease_member(id, second, tokens)
  return string.format("%s %.0f %.0f", id, second, tokens)
end

-- Take out of a window what the leases that end in between had reserved.
local function refund(w, low, high)
  local members = redis.call("ZRANGEBYSCORE", w.leases_key, low, high)
  if #members == 0 then
    return
  end
  local reserved = {}
  for _, member in ipairs(members) do
    local second, tokens = string.match(member, "^%S+ (%d+) (%d+)$")
    local amounts = reserved[second] or { 0, 0 }
    reserved[second] = { amounts[1] - 1, amounts[2] - tonumber(tokens) }
  end
  for second, amounts in pairs(reserved) do
    spend(w, tonumber(second), amounts)
  end
  redis.call("ZREMRANGEBYSCORE", w.leases_key, low, high)
  w.is_changed = true
end

local function open_limit(window_key, leases_key, lease_ms)
  local w = open_window(window_key, 2, WINDOW_S, now_ms)
  w.leases_key, w.lease_ms, w.is_changed = leases_key, lease_ms, false
  refund(w, "-inf", now_ms)
  refund(w, "(" .. now_ms + 2 * lease_ms, "+inf")
  return w
end

-- Count a reservation, or go on with it: with a lease that begins now.
local function lease_limit(w, id, second, tokens, ttl_s)
  local member = lease_member(id, second, tokens)
  if not redis.call("ZSCORE", w.leases_key, member) then
    spend(w, second, { 1, tokens })
    w.is_changed = true
  end
  redis.call("ZADD", w.leases_key, now_ms + w.lease_ms, member)
  redis.call("EXPIRE", w.leases_key, ttl_s)
end

-- Every script that opens a limit's window ends with it.
local function close_limit(w, ttl_s)
  if w.is_changed then
    close_window(w, ttl_s)
  end
end

local function read_hold(key)
  local hold = redis.call("GET", key)
  if not hold or hold == "ended" then
    return hold, nil, nil
  end
  local second, tokens = string.match(hold, "^held (%d+) (%d+)$")
  return "held", tonumber(second), tonumber(tokens)
end

-- The limits {user_requests, user_tokens, org_requests, org_tokens}, and where each comes from.
local function read_rules(rules_key, user_field, settings)
  local fields = { user_field, "users", "org" }
  local raw = redis.call("HMGET", rules_key, unpack(fields))
  local limits, origins = {}, {}
  for at = 1, 4 do
    limits[at], origins[at] = settings[at], "settings"
  end
  for i, owner in ipairs({ 0, 0, 2 }) do
    local values = { string.match(raw[i] or "", "^(%S+) (%S+)") }
    for unit = 1, 2 do
      local limit = tonumber(values[unit])
      if limit and origins[owner + unit] == "settings" then
        limits[owner + unit], origins[owner + unit] = limit, fields[i]
      end
    end
  end
  if raw[1] or raw[2] or raw[3] then
    redis.call("EXPIRE", rules_key, RULES_S)
  end
  return limits, origins
end
