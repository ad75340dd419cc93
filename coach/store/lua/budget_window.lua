--[[
budget_window.lua: a rolling window in one-second buckets. Not run by itself: coach/store/scripts.py
puts it, behind arguments.lua, before every limit_* and budget_* script.

A window is a HASH with a number per dimension in every value, "a b …":
  <second>  what was spent in that second of the Redis clock; gone when zero
  sum       all buckets that still count, plus what is held without a bucket (budget_admit.lua)
  swept     the last second that no longer counts: its bucket has been taken out of sum

A bucket counts from its second on for length_s seconds. With length 60 whatever is spent counts
for 59 to 60 s; with 61 for 60 to 61 s, so that no 60 s however cut hold more than the limit.

A clock that was set back (a failover to a server whose clock lags) stands still for the window until
it has caught up; set back by more than length_s, all that counts is taken to be spent now.

Cost  O(dimensions); once a second O(seconds since the last call), at most length_s.
]]
local function vector(text, dimensions)
  local values = {}
  if text then
    for number in string.gmatch(text, "%S+") do
      values[#values + 1] = tonumber(number)
    end
  end
  for i = #values + 1, dimensions do
    values[i] = 0
  end
  return values
end

local function packed(values)
  local texts = {}
  for i = 1, #values do
    texts[i] = string.format("%.0f", values[i])
  end
  return table.concat(texts, " ")
end

local function are_ints_in(values, count, low, high)
  if #values ~= count then
    return false
  end
  for i = 1, count do
    if not is_int_in(values[i], low, high) then
      return false
    end
  end
  return true
end

-- Read a window and take out of its sum what no longer counts.
local function open_window(key, dimensions, length_s, now_ms)
  local raw = redis.call("HMGET", key, "sum", "swept")
  local w = {
    key = key,
    dimensions = dimensions,
    length_s = length_s,
    now_ms = now_ms,
    now_s = math.floor(now_ms / 1000),
    sum = vector(raw[1], dimensions),
  }
  w.swept = w.now_s - length_s
  local swept = tonumber(raw[2])
  if swept == nil then
    return w
  end
  local is_set_back = swept > w.swept + length_s
  if swept >= w.swept and not is_set_back then
    w.swept, w.now_s = swept, swept + length_s
    return w
  end
  local fields = {}
  for second = swept + 1, is_set_back and swept + length_s or math.min(w.swept, swept + length_s) do
    fields[#fields + 1] = tostring(second)
  end
  local buckets, gone, total = redis.call("HMGET", key, unpack(fields)), {}, vector("", dimensions)
  for i = 1, #fields do
    if buckets[i] then
      local values = vector(buckets[i], dimensions)
      for d = 1, dimensions do
        total[d] = total[d] + values[d]
      end
      gone[#gone + 1] = fields[i]
    end
  end
  if #gone > 0 then
    redis.call("HDEL", key, unpack(gone))
  end
  if is_set_back then
    redis.call("HSET", key, tostring(w.now_s), packed(total))
  else
    for d = 1, dimensions do
      w.sum[d] = w.sum[d] - total[d]
    end
  end
  redis.call("HSET", key, "sum", packed(w.sum), "swept", w.swept)
  return w
end

-- Spend (or, with negative amounts, give back) in a second; false when that second no longer counts.
local function spend(w, second, amounts)
  if second > w.now_s + w.length_s then
    second = w.now_s -- of before the clock was set back
  end
  if second <= w.swept then
    return false
  end
  local field, zero = tostring(second), true
  local values = vector(redis.call("HGET", w.key, field), w.dimensions)
  for d = 1, w.dimensions do
    local amount = math.max(amounts[d], -values[d]) -- less than nothing cannot have been spent
    values[d] = values[d] + amount
    w.sum[d] = w.sum[d] + amount
    zero = zero and values[d] == 0
  end
  if zero then
    redis.call("HDEL", w.key, field)
  else
    redis.call("HSET", w.key, field, packed(values))
  end
  if w.seconds then
    w.seconds[second - (w.now_s - w.length_s)] = values
  end
  return true
end

-- Write what spend() has changed. Every script that spends ends with it.
local function close_window(w, ttl_s)
  redis.call("HSET", w.key, "sum", packed(w.sum), "swept", w.swept)
  redis.call("EXPIRE", w.key, ttl_s)
end

-- The buckets, oldest first; seconds[i] stops counting i seconds from the present one.
local function seconds_of(w)
  if w.seconds == nil then
    local fields = {}
    for second = w.now_s - w.length_s + 1, w.now_s do
      fields[#fields + 1] = tostring(second)
    end
    local raw = redis.call("HMGET", w.key, unpack(fields))
    w.seconds = {}
    for i = 1, #fields do
      w.seconds[i] = raw[i] and vector(raw[i], w.dimensions) or false
    end
  end
  return w.seconds
end

-- Milliseconds until `amount` fits under `limit` by what slides out; 0: now; -1: not by sliding.
local function slide_ms(w, dimension, amount, limit)
  local excess = w.sum[dimension] + amount - limit
  if excess <= 0 then
    return 0
  end
  if amount > limit then
    return -1
  end
  for i, values in ipairs(seconds_of(w)) do
    if values then
      excess = excess - values[dimension]
      if excess <= 0 then
        return math.max(1, (w.now_s + i) * 1000 - w.now_ms)
      end
    end
  end
  return -1
end

