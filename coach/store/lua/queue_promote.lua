--[[
queue_promote.lua: delayed jobs that are due, and jobs whose lease has run out, become ready again.

Data and invariants: queue_submit.lua. A lease that ran out counts as a failure: a job that kills
its graders must come to an end. What is done with a job of too many failures is the claimer's
decision, since only it can write the record.

Also puts a marker back wherever a lane has ready jobs and none (I2): a grader that took a marker
and will not claim calls this.

KEYS[1]  ready   KEYS[2]  delayed   KEYS[3]  leased   KEYS[4]  jobs
KEYS[5]  markers of lane 0   KEYS[6]  of lane 1   KEYS[7]  of lane 2

ARGV[1]  count_max  integer, 1..256: so many of each kind at most

Returns  {due, lost}: how many delayed jobs, and how many of lost leases
Errors   COACH_BADARG count_max. Nothing has been written.
Cost     O(count_max log n)
]]
local ready, delayed, leased, jobs = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local count_max = tonumber(ARGV[1])
local LANE = 2251799813685248

if count_max == nil or count_max ~= math.floor(count_max) or count_max < 1 or count_max > 256 then
  return redis.error_reply("COACH_BADARG count_max")
end

local time = redis.call("TIME")
local now_ms = string.format("%.0f", time[1] * 1000 + math.floor(time[2] / 1000))

local function promote(from, failed)
  local ids = redis.call("ZRANGEBYSCORE", from, "-inf", now_ms, "LIMIT", 0, count_max)
  for _, id in ipairs(ids) do
    local rank, submitted_ms, attempt, failures =
      string.match(redis.call("HGET", jobs, id), "^(%d+) (%d+) (%d+) (%d+)$")
    failures = string.format("%.0f", failures + failed)
    redis.call("ZREM", from, id)
    redis.call("ZADD", ready, rank, id)
    redis.call("HSET", jobs, id, table.concat({ rank, submitted_ms, attempt, failures }, " "))
  end
  return #ids
end

local due, lost = promote(delayed, 0), promote(leased, 1)
for lane = 0, 2 do
  local low, high = string.format("%.0f", lane * LANE), string.format("(%.0f", (lane + 1) * LANE)
  if redis.call("LLEN", KEYS[5 + lane]) == 0 and redis.call("ZCOUNT", ready, low, high) > 0 then
    redis.call("LPUSH", KEYS[5 + lane], "1")
  end
end
return { due, lost }
