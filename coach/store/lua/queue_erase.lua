--[[
queue_erase.lua: leave nothing of a job, in whatever state it is. Behind queue_jobs.lua, which has
KEYS, the order and the invariants. Its grader finds that it has lost it; nobody is told.

ARGV[1]  id
ARGV[2]  user   ARGV[3]  org    whose it must be

Returns  {"erased"}
         {"unknown"}  no such record, or another's: nothing changed
]]
local id = ARGV[1]
local known = redis.call("HMGET", record, "user", "org")
if known[1] ~= ARGV[2] or known[2] ~= ARGV[3] then
  return { "unknown" }
end
local job = read_job(id)
if job then
  redis.call("ZREM", ready, ready_member(job))
  for _, key in ipairs({ delayed, leased, dead }) do
    redis.call("ZREM", key, id)
  end
  forget(job)
  tidy_markers(job.lane, mode_of(job.lane) == "paused")
end
redis.call("DEL", record)
return { "erased" }
