--[[
queue_promote.lua: retries that are due, and jobs whose lease has run out, become ready again. Behind
queue_jobs.lua, which has KEYS, the order and the invariants.

Also puts a marker back wherever a lane has ready jobs and none (I2): a grader that took a marker and
will not claim calls this.

ARGV[1]  count_max    integer, 1..256: so many of each kind at most
ARGV[2]  retry_per_s  integer, 1..10^6   ARGV[3]  retry_burst  integer, 1..10^6

Returns  {due, lost}: how many retries, and how many of lost leases
Errors   COACH_BADARG <name>. Nothing has been written.
Cost     O(count_max log n)
]]
local count_max = tonumber(ARGV[1])
local retry_per_s, retry_burst = tonumber(ARGV[2]), tonumber(ARGV[3])

if not is_int_in(count_max, 1, 256) then
  return redis.error_reply("COACH_BADARG count_max")
end
if not is_int_in(retry_per_s, 1, 1000000) then
  return redis.error_reply("COACH_BADARG retry_per_s")
end
if not is_int_in(retry_burst, 1, 1000000) then
  return redis.error_reply("COACH_BADARG retry_burst")
end

local due, lost = promote(count_max, retry_per_s, retry_burst)
for lane = 0, LANES - 1 do
  tidy_markers(lane, mode_of(lane) == "paused")
end
return { due, lost }
