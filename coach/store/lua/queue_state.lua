--[[
queue_state.lua: what a submission's owner may know of it, at one moment. Behind queue_jobs.lua, which
has KEYS, the order and the invariants.

ARGV[1]  id

Returns  {} unknown, or {status, user, org, submitted_ms, grade, code, message, reason, failures}
         with status queued | grading | graded | failed; fields that are not set are empty
]]
local field = redis.call("HMGET", record, "status", "user", "org", "submitted_ms", "grade", "code",
  "message", "reason", "failures")
if not field[1] then
  return {}
end
for i = 1, 9 do
  field[i] = field[i] or ""
end
if field[1] == "open" then
  field[1] = redis.call("ZSCORE", leased, ARGV[1]) and "grading" or "queued"
end
return field
