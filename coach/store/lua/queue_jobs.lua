--[[
queue_jobs.lua: a shard of the grading queue: its data, its order, and what becomes ready by itself.
Not run by itself: coach/store/scripts.py puts it, behind arguments.lua, before the other queue_*
scripts (not queue_mail).

KEYS[1]  ready    ZSET    "<arrival in 16 digits> <id>" -> rank = lane * 2^51 + start; lower is sooner
KEYS[2]  delayed  ZSET    id -> when it is due, milliseconds of the Redis clock
KEYS[3]  leased   ZSET    id -> end of its lease, milliseconds of the Redis clock
KEYS[4]  dead     ZSET    id -> when it was given up, milliseconds of the Redis clock
KEYS[5]  jobs     HASH    id -> "lane start arrival submitted_ms attempt failures" of every id of the
                          four above. attempt counts claims and is the fencing number; failures
                          counts those that count towards the dead letter
KEYS[6]  open     ZSET    id -> lane * 2^51 + arrival, of the ready, delayed and leased ids
KEYS[7]  share    ZSET    "<lane> <org>" -> lane * 2^51 + finish: the fair-share clocks, see below
KEYS[8]  control  HASH    arrivals      the last arrival number, < 2^51
                          clock:<lane>  the lane's virtual time, see below
                          mode:<lane>   paused: nothing is claimed | draining: nothing is taken in;
                                        absent: open
                          retry         "millitokens at_ms": the retry budget, see below
KEYS[9]  counts   HASH    since ever: <event>:<lane> and, by latency in milliseconds,
                          <pickup|total>:<lane>:<bound> with <pickup|total>:<lane>:sum
KEYS[10…12]  markers of lanes 0, 1, 2  LIST  wake graders; never longer than 64
KEYS[13]  record  HASH    submission:{shard}:<id>: the essay, its state, judges' answers, the grade.
                          Only where the script is about one job
KEYS[14]  outbox  ZSET    "<graded|failed> <attempt> <id>" -> when, milliseconds of the Redis clock: ends
                          of jobs that somebody outside is still to hear of. Beside the record
KEYS[15]  index   ZSET    of an org's assignment: id -> when it was handed in, milliseconds of the Redis
                          clock. Only where an essay comes in

Invariants (hold before and after every queue_* script)
  I1  an id is in at most one of ready, delayed, leased, dead, and in jobs if and only if it is in
      one; in open if and only if it is in one of the first three
  I2  when a lane that is not paused has ready ids its marker list is not empty, or a grader that
      took its last marker is about to claim; one that dies then delays the others until they look
      again by themselves
  I3  attempt never falls while the id is in jobs; only who names the attempt of a lease that still
      stands changes a leased job, operators apart
  I4  a lane's clock never falls; no clock of an org that has not passed it is kept

Order: start-time fair queueing (P. Goyal, H. Vin, H. Cheng, "Start-time Fair Queuing", SIGCOMM
1996), a clock for each lane. A job costs UNIT / weight of its org; its start is what its org's last
job finishes at, or the lane's virtual time where that is later; virtual time is the latest start that
was claimed. So orgs that have jobs waiting get shares by weight however many they have sent, and what
an org did not use is not saved up. Equal ranks: the members decide, which is the order of arrival.

Range: lane 0..2 and start + cost < 2^51, so that a rank is below 3 * 2^51 < 2^53: exact in a double.
2^51 / UNIT are 8.1e10 jobs of one lane: a thousand a second for two and a half years. Beyond it, or
beyond 2^51 arrivals, submissions are refused as COACH_EXHAUSTED: drain the queue, delete `control`.

Retry budget: what is delayed becomes ready only against a token; per_s are earned in a second, up to
burst. So no more than burst + per_s * t retries begin in any t seconds, whatever has failed.

Clock: TIME of Redis, for all that is in milliseconds.
]]
local ready, delayed, leased, dead = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local jobs, open, share, control, counts = KEYS[5], KEYS[6], KEYS[7], KEYS[8], KEYS[9]
local record = KEYS[13]
local OUTBOX_S = 7776000 -- kept for so long without news: nobody may be there any more to read it
local LANE, LANES, MARKERS, MARKERS_MAX, UNIT = 2251799813685248, 3, 10, 64, 27720
local BOUNDS_MS = { 5, 10, 20, 50, 100, 250, 500, 1000, 2000, 4000, 8000, 15000, 60000, 600000 }

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)

local function int(number)
  return string.format("%.0f", number)
end

-- First and, for commands of ranges, first no longer.
local function ranks_of(lane)
  return int(lane * LANE), "(" .. int((lane + 1) * LANE)
end

local function read_job(id)
  local text = redis.call("HGET", jobs, id)
  if not text then
    return nil
  end
  local lane, start, arrival, submitted_ms, attempt, failures =
    string.match(text, "^(%d) (%d+) (%d+) (%d+) (%d+) (%d+)$")
  return {
    id = id,
    lane = tonumber(lane),
    start = tonumber(start),
    arrival = tonumber(arrival),
    submitted_ms = tonumber(submitted_ms),
    attempt = tonumber(attempt),
    failures = tonumber(failures),
  }
end

local function write_job(job)
  redis.call("HSET", jobs, job.id, string.format("%d %.0f %.0f %.0f %.0f %.0f", job.lane, job.start,
    job.arrival, job.submitted_ms, job.attempt, job.failures))
end

-- The job, if the lease of this attempt stands.
local function held(id, attempt)
  local job = read_job(id)
  if job and int(job.attempt) == attempt and redis.call("ZSCORE", leased, id) then
    return job
  end
  return nil
end

local function ready_member(job)
  return string.format("%016.0f %s", job.arrival, job.id)
end

local function make_ready(job)
  redis.call("ZADD", ready, int(job.lane * LANE + job.start), ready_member(job))
end

local function forget(job)
  redis.call("HDEL", jobs, job.id)
  redis.call("ZREM", open, job.id)
end

local function mode_of(lane)
  return redis.call("HGET", control, "mode:" .. lane)
end

-- Call one more of the lane's graders, unless it is paused.
local function wake(lane)
  if mode_of(lane) == "paused" then
    return
  end
  if redis.call("LLEN", KEYS[MARKERS + lane]) < MARKERS_MAX then
    redis.call("LPUSH", KEYS[MARKERS + lane], "1")
  end
end

-- A lane with ready jobs keeps a marker; one without, or that is paused, keeps none, so that nobody
-- wakes for nothing. Whoever took ready jobs out calls it.
local function tidy_markers(lane, is_paused)
  local low, high = ranks_of(lane)
  local count = redis.call("ZCOUNT", ready, low, high)
  if count == 0 then
    redis.call("ZREMRANGEBYSCORE", share, low, high) -- nobody waits, so nobody is ahead
  end
  if count == 0 or is_paused then
    redis.call("DEL", KEYS[MARKERS + lane])
  elseif redis.call("LLEN", KEYS[MARKERS + lane]) == 0 then
    redis.call("LPUSH", KEYS[MARKERS + lane], "1")
  end
end

local function note(event, lane)
  redis.call("HINCRBY", counts, event .. ":" .. lane, 1)
end

local function note_latency(kind, lane, ms)
  local field = kind .. ":" .. lane .. ":"
  local bound = "inf"
  for i = 1, #BOUNDS_MS do
    if ms <= BOUNDS_MS[i] then
      bound = BOUNDS_MS[i]
      break
    end
  end
  redis.call("HINCRBY", counts, field .. bound, 1)
  redis.call("HINCRBY", counts, field .. "sum", int(ms))
end

-- Somebody outside is to hear how the job has ended, if its record says so.
local function announce(how, attempt, id)
  if redis.call("HGET", record, "announce") == "1" then
    redis.call("ZADD", KEYS[14], int(now_ms), how .. " " .. attempt .. " " .. id)
    redis.call("EXPIRE", KEYS[14], OUTBOX_S)
  end
end

-- Remember an essay under its assignment, for as long as it may be there.
local function index_essay(id, kind, ttl_s)
  if kind == "grade" then
    redis.call("ZADD", KEYS[15], int(now_ms), id)
    redis.call("ZREMRANGEBYSCORE", KEYS[15], "-inf", int(now_ms - 2 * ttl_s * 1000))
    redis.call("EXPIRE", KEYS[15], 2 * ttl_s)
  end
end

-- Give a job a place behind what its org has waiting; nil where the range is used up.
local function place(job, org, weight)
  local cost = math.max(1, math.floor(UNIT / weight + 0.5))
  local clock = tonumber(redis.call("HGET", control, "clock:" .. job.lane) or 0)
  local finish = redis.call("ZSCORE", share, job.lane .. " " .. org)
  job.start = finish and math.max(clock, finish - job.lane * LANE) or clock
  job.finish = job.start + cost
  job.ahead = math.floor((job.start - clock) / cost) -- so many of its org's wait
  return job.finish < LANE
end

local function keep_place(job, org)
  redis.call("ZADD", share, int(job.lane * LANE + job.finish), job.lane .. " " .. org)
end

-- Move what is due to ready, at most count_max of each kind. Returns how many were delayed, how many
-- had lost their lease, and in how many milliseconds there is more to do (-1: never). A lease that
-- ran out counts as a failure: a job that kills its graders must come to an end. What is done with a
-- job of too many failures is the claimer's decision, since only it can write the record.
local function promote(count_max, retry_per_s, retry_burst)
  local next_ms = -1
  local function later(at_ms)
    local wait_ms = math.max(0, math.ceil(at_ms - now_ms))
    if next_ms < 0 or wait_ms < next_ms then
      next_ms = wait_ms
    end
  end

  local lost = redis.call("ZRANGEBYSCORE", leased, "-inf", int(now_ms), "LIMIT", 0, count_max)
  for _, id in ipairs(lost) do
    local job = read_job(id)
    job.failures = job.failures + 1
    redis.call("ZREM", leased, id)
    write_job(job)
    make_ready(job)
    wake(job.lane) -- its graders may be others than who found it
    note("lost", job.lane)
  end
  local lease = redis.call("ZRANGE", leased, 0, 0, "WITHSCORES")
  if lease[2] then
    later(lease[2])
  end

  local first = redis.call("ZRANGE", delayed, 0, 0, "WITHSCORES")
  if not first[2] then
    return 0, #lost, next_ms
  end
  local millitokens, at_ms =
    string.match(redis.call("HGET", control, "retry") or "", "^(%d+) (%d+)$")
  local full = retry_burst * 1000
  millitokens = millitokens
    and math.min(full, millitokens + math.max(0, now_ms - at_ms) * retry_per_s) or full
  local allowed = math.min(count_max, math.floor(millitokens / 1000))
  local due = {}
  if allowed > 0 then
    due = redis.call("ZRANGEBYSCORE", delayed, "-inf", int(now_ms), "LIMIT", 0, allowed)
  end
  for _, id in ipairs(due) do
    local job = read_job(id)
    redis.call("ZREM", delayed, id)
    make_ready(job)
    wake(job.lane)
    note("retried", job.lane)
  end
  if #due > 0 then
    millitokens = millitokens - #due * 1000
    redis.call("HSET", control, "retry", int(millitokens) .. " " .. int(now_ms))
    first = redis.call("ZRANGE", delayed, 0, 0, "WITHSCORES")
  end
  if first[2] then
    later(math.max(first[2], now_ms + (1000 - millitokens) / retry_per_s))
  end
  return #due, #lost, next_ms
end
