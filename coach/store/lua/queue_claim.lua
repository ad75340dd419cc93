--[[
queue_claim.lua: lease the most urgent ready job of the lanes a grader serves.

Data and invariants: queue_submit.lua. A lease is held by the attempt number it was given under:
whoever comes with an older one is refused, so a grader that slept through its lease changes
nothing.

KEYS[1]  ready   KEYS[2]  delayed   KEYS[3]  leased   KEYS[4]  jobs
KEYS[5…] markers of the lanes served, in the order of ARGV[2…]

ARGV[1]   lease_ms  integer, 1..600000
ARGV[2…]  lane      integers 0..2, most urgent first

Returns  {1, id, lane, attempt, failures, age_ms}   leased; age_ms since it was submitted
         {0, due_ms}  nothing is ready; in due_ms the next delayed job is due or lease runs out
                      (0: now, call queue_promote), -1: there is none
Errors   COACH_BADARG <name>. Nothing has been written.

Markers  a lane left with ready jobs keeps a marker, so that another sleeping grader comes; a lane
         left empty keeps none, so that nobody wakes for nothing.
Cost     O(log n) per lane.
]]
local ready, delayed, leased, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease_ms = tonumber(ARGV[1])
local LANE = 2251799813685248

local function is_int_in(value, low, high)
  return value ~= nil and value == math.floor(value) and value >= low and value <= high
end

if not is_int_in(lease_ms, 1, 600000) then
  return redis.error_reply("COACH_BADARG lease_ms")
end
if #ARGV < 2 or #ARGV - 1 ~= #KEYS - 4 then
  return redis.error_reply("COACH_BADARG lanes")
end
for i = 2, #ARGV do
  if not is_int_in(tonumber(ARGV[i]), 0, 2) then
    return redis.error_reply("COACH_BADARG lane")
  end
end

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

for i = 2, #ARGV do
  local lane, markers = tonumber(ARGV[i]), KEYS[i + 3]
  local low, high = string.format("%.0f", lane * LANE), string.format("(%.0f", (lane + 1) * LANE)
  local id = redis.call("ZRANGEBYSCORE", ready, low, high, "LIMIT", 0, 1)[1]
  if id then
    local rank, submitted_ms, attempt, failures =
      string.match(redis.call("HGET", jobs, id), "^(%d+) (%d+) (%d+) (%d+)$")
    attempt = string.format("%.0f", attempt + 1)
    redis.call("ZREM", ready, id)
    redis.call("ZADD", leased, string.format("%.0f", now_ms + lease_ms), id)
    redis.call("HSET", jobs, id, table.concat({ rank, submitted_ms, attempt, failures }, " "))
    if redis.call("ZCOUNT", ready, low, high) == 0 then
      redis.call("DEL", markers)
    elseif redis.call("LLEN", markers) == 0 then
      redis.call("LPUSH", markers, "1")
    end
    return { 1, id, lane, tonumber(attempt), tonumber(failures), now_ms - submitted_ms }
  end
  redis.call("DEL", markers)
end

local due_ms = -1
for _, key in ipairs({ delayed, leased }) do
  local first = redis.call("ZRANGE", key, 0, 0, "WITHSCORES")
  if first[2] then
    local wait_ms = math.max(0, tonumber(first[2]) - now_ms)
    if due_ms < 0 or wait_ms < due_ms then
      due_ms = wait_ms
    end
  end
end
return { 0, due_ms }
