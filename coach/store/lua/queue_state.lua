--[[
queue_state.lua: what a submission's owner may know of it, at one moment. Behind queue_jobs.lua, which
has KEYS, the order and the invariants.

ARGV[1]  id

Returns  {} unknown, or {status, user, org, submitted_ms, grade, code, message, reason, failures, kind,
         hopeless, ended_ms, place, due_ms} with status queued | grading | graded | failed; place 1 is the next
         of the shard to be claimed, 0: it is not ready; due_ms of a retry, 0: it is none; fields
         that are not set are empty
]]
local field = redis.call("HMGET", record, "status", "user", "org", "submitted_ms", "grade", "code",
  "message", "reason", "failures", "kind", "hopeless", "ended_ms")
if not field[1] then
  return {}
end
for i = 1, 12 do
  field[i] = field[i] or ""
end
field[13], field[14] = 0, 0
if field[1] == "open" then
  field[1] = redis.call("ZSCORE", leased, ARGV[1]) and "grading" or "queued"
  local job = read_job(ARGV[1])
  if job and field[1] == "queued" then
    local ahead = redis.call("ZRANK", ready, ready_member(job))
    field[13] = ahead and ahead + 1 or 0
    field[14] = tonumber(redis.call("ZSCORE", delayed, ARGV[1]) or 0)
  end
end
return field
