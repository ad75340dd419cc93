--[[
queue_release.lua: hand a leased job back untried, to its old place in the order.

Data and invariants: queue_submit.lua.

KEYS[1]  leased   KEYS[2]  ready   KEYS[3]  jobs   KEYS[4]  markers of the job's lane
ARGV[1]  id       ARGV[2]  attempt

Returns  1 handed back, no failure counted; 0 the lease is lost: nothing changed
]]
local leased, ready, jobs, markers = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local id, attempt = ARGV[1], ARGV[2]
local MARKERS_MAX = 64

local job = redis.call("HGET", jobs, id) or ""
local rank, current = string.match(job, "^(%d+) %d+ (%d+) %d+$")
if current ~= attempt or not redis.call("ZSCORE", leased, id) then
  return 0
end
redis.call("ZREM", leased, id)
redis.call("ZADD", ready, rank, id)
if redis.call("LLEN", markers) < MARKERS_MAX then
  redis.call("LPUSH", markers, "1")
end
return 1
