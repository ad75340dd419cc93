--[[
queue_judge.lua: keep one judge's answer in the record, so that a retry pays only for the missing.

Data and invariants: queue_submit.lua.

KEYS[1]  leased   KEYS[2]  jobs   KEYS[3]  record
ARGV[1]  id       ARGV[2]  attempt   ARGV[3]  judge, not empty   ARGV[4]  answer (JSON)

Returns  1 kept; 0 the lease is lost: nothing changed
Errors   COACH_BADARG judge. Nothing has been written.
]]
local leased, jobs, record = KEYS[1], KEYS[2], KEYS[3]
local id, attempt, judge = ARGV[1], ARGV[2], ARGV[3]

if judge == "" then
  return redis.error_reply("COACH_BADARG judge")
end

local job = redis.call("HGET", jobs, id)
local current = job and string.match(job, "^%d+ %d+ (%d+) %d+$")
if current ~= attempt or not redis.call("ZSCORE", leased, id) then
  return 0
end
-- A record that has outlived its time is not to come back without one.
if redis.call("EXISTS", record) == 0 then
  return 0
end
redis.call("HSET", record, "judge:" .. judge, ARGV[4])
return 1
