--[[
queue_claim.lua: lease the most urgent ready jobs of the lanes a grader serves. Behind queue_jobs.lua,
which has KEYS, the order and the invariants.

First what is due becomes ready, so that a queue which never runs empty delays neither retries nor the
jobs of a dead grader.

ARGV[1]   lease_ms     integer, 1..600000
ARGV[2]   count_max    integer, 1..64: so many jobs at most
ARGV[3]   retry_per_s  integer, 1..10^6   ARGV[4]  retry_burst  integer, 1..10^6
ARGV[5…]  lane         integers 0..2, most urgent first

Returns  {next_ms, id, lane, attempt, failures, age_ms, id, …}  leased, most urgent first. age_ms
         since it was submitted; next_ms until a retry or a lost lease may be claimed (-1: there are
         none; 0: now)
Errors   COACH_BADARG <name>. Nothing has been written.
Cost     O(log n) for each lane, job and job that was due, of which there are 32 at most
]]
local PROMOTED_MAX = 16
local lease_ms, count_max = tonumber(ARGV[1]), tonumber(ARGV[2])
local retry_per_s, retry_burst = tonumber(ARGV[3]), tonumber(ARGV[4])

if not is_int_in(lease_ms, 1, 600000) then
  return redis.error_reply("COACH_BADARG lease_ms")
end
if not is_int_in(count_max, 1, 64) then
  return redis.error_reply("COACH_BADARG count_max")
end
if not is_int_in(retry_per_s, 1, 1000000) then
  return redis.error_reply("COACH_BADARG retry_per_s")
end
if not is_int_in(retry_burst, 1, 1000000) then
  return redis.error_reply("COACH_BADARG retry_burst")
end
if #ARGV < 5 then
  return redis.error_reply("COACH_BADARG lanes")
end
for i = 5, #ARGV do
  if not is_int_in(tonumber(ARGV[i]), 0, LANES - 1) then
    return redis.error_reply("COACH_BADARG lane")
  end
end

local _, _, next_ms = promote(PROMOTED_MAX, retry_per_s, retry_burst)
local lease_end = int(now_ms + lease_ms)
local reply = { next_ms }

local function take(lane, count)
  local low, high = ranks_of(lane)
  local members = redis.call("ZRANGEBYSCORE", ready, low, high, "LIMIT", 0, count)
  if #members == 0 then
    return 0
  end
  local latest = 0
  for _, member in ipairs(members) do
    local job = read_job(string.sub(member, 18))
    job.attempt = job.attempt + 1
    latest = math.max(latest, job.start)
    redis.call("ZREM", ready, member)
    redis.call("ZADD", leased, lease_end, job.id)
    write_job(job)
    local age_ms = now_ms - job.submitted_ms
    if job.attempt == 1 then
      note_latency("pickup", lane, age_ms)
    end
    for _, value in ipairs({ job.id, lane, job.attempt, job.failures, age_ms }) do
      reply[#reply + 1] = value
    end
  end
  if latest > tonumber(redis.call("HGET", control, "clock:" .. lane) or 0) then
    redis.call("HSET", control, "clock:" .. lane, int(latest))
    redis.call("ZREMRANGEBYSCORE", share, low, int(lane * LANE + latest))
  end
  return #members
end

for i = 5, #ARGV do
  local lane = tonumber(ARGV[i])
  local is_paused = mode_of(lane) == "paused"
  if not is_paused and count_max > 0 then
    count_max = count_max - take(lane, count_max)
  end
  tidy_markers(lane, is_paused)
end
return reply
