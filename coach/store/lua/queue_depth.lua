--[[
queue_depth.lua: how much waits in a shard, for metrics.

Data and invariants: queue_submit.lua.

KEYS[1]  ready   KEYS[2]  delayed   KEYS[3]  leased   KEYS[4]  dead   KEYS[5]  jobs

Returns  {delayed, leased, dead, ready in lane 0, age_ms, ready in lane 1, age_ms, in lane 2, age_ms}
         age_ms: since the lane's next job was submitted; 0 when the lane is empty
Cost     O(log n)
]]
local ready, jobs = KEYS[1], KEYS[5]
local LANE = 2251799813685248
local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local reply = {}
for i = 2, 4 do
  reply[#reply + 1] = redis.call("ZCARD", KEYS[i])
end
for lane = 0, 2 do
  local low, high = string.format("%.0f", lane * LANE), string.format("(%.0f", (lane + 1) * LANE)
  local first = redis.call("ZRANGEBYSCORE", ready, low, high, "LIMIT", 0, 1)[1]
  reply[#reply + 1] = redis.call("ZCOUNT", ready, low, high)
  local age_ms = 0
  if first then
    local submitted_ms = string.match(redis.call("HGET", jobs, first), "^%d+ (%d+)")
    age_ms = now_ms - submitted_ms
  end
  reply[#reply + 1] = age_ms
end
return reply
