--[[
queue_judge.lua: keep one judge's answer in the record, so that a retry pays only for the missing.
Behind queue_jobs.lua, which has KEYS, the order and the invariants.

ARGV[1]  id       ARGV[2]  attempt   ARGV[3]  judge, not empty   ARGV[4]  answer (JSON)

Returns  1 kept; 0 the lease is lost: nothing changed
Errors   COACH_BADARG judge. Nothing has been written.
]]
if ARGV[3] == "" then
  return redis.error_reply("COACH_BADARG judge")
end
-- A record that has outlived its time is not to come back without one.
if not held(ARGV[1], ARGV[2]) or redis.call("EXISTS", record) == 0 then
  return 0
end
redis.call("HSET", record, "judge:" .. ARGV[3], ARGV[4])
return 1
