--[[
queue_depth.lua: how much waits in a shard, for metrics and operators. Behind queue_jobs.lua, which has
KEYS, the order and the invariants.

Returns  {delayed, leased, dead, then for each lane: ready, open, age_ms, mode}
         open: ready, delayed or leased; age_ms: since the oldest of them was submitted, 0 without
         any; mode: open | paused | draining
Cost     O(log n)
]]
local reply = {}
for _, key in ipairs({ delayed, leased, dead }) do
  reply[#reply + 1] = redis.call("ZCARD", key)
end
for lane = 0, LANES - 1 do
  local low, high = ranks_of(lane)
  reply[#reply + 1] = redis.call("ZCOUNT", ready, low, high)
  reply[#reply + 1] = redis.call("ZCOUNT", open, low, high)
  local oldest = redis.call("ZRANGEBYSCORE", open, low, high, "LIMIT", 0, 1)[1]
  reply[#reply + 1] = oldest and now_ms - read_job(oldest).submitted_ms or 0
  reply[#reply + 1] = mode_of(lane) or "open"
end
return reply
