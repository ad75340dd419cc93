--[[
queue_release.lua: hand a leased job back untried, to its old place in the order. Behind
queue_jobs.lua, which has KEYS, the order and the invariants.

ARGV[1]  id       ARGV[2]  attempt

Returns  1 handed back, no failure counted; 0 the lease is lost: nothing changed
]]
local job = held(ARGV[1], ARGV[2])
if not job then
  return 0
end
redis.call("ZREM", leased, job.id)
make_ready(job)
wake(job.lane)
return 1
