--[[
circuit_report.lua: tell an endpoint's breaker how requests ended, and hear how it stands.

KEYS[1]  circuit  HASH of one endpoint, shared by all workers; no record is a closed breaker
  state    "closed" | "open" | "ramping"
  faults   faults in a row
  half     start of the present half window, ms; ok, bad: what ended in it; ok_before, bad_before:
           in the half before
  until    open: no probe before this ms
  trips    how often it opened since it was closed; each opening lasts twice as long
  step     ramping: index of the share let in; step_ms: since when
  probe, probe_until  who tries it out, and until when that place is kept (circuit_probe.lua)
  hold     nobody asks before this ms: the provider said so

ARGV[1]  ok, [2] bad  integers, 0..1e6: requests that ended well, and in faults
ARGV[3]  trailing     integer, 0..bad: faults since the last good end among these
ARGV[4]  hold_ms      integer, 0..3600000: the provider wants to be left alone so long
ARGV[5]  probe        "" | "ok" | "fault" | "dropped": how the probe of ARGV[6] ended
ARGV[6]  owner        of that probe
ARGV[7]  faults_max   integer, 1..1000: in a row, they open it
ARGV[8]  percent      integer, 1..100: as faults among at least ARGV[9] requests, they open it
ARGV[9]  requests_min integer, 1..1e6   ARGV[10]  window_ms  integer, 1000..600000
ARGV[11] open_ms, [12] open_ms_max   integers, 1..3600000
ARGV[13] step_ms      integer, 1..600000: each share of the ramp lasts so long, and one good end

Returns  {state, share let in in percent, ms until a probe may be tried, ms until hold ends}
Errors   COACH_BADARG <name>. Nothing has been written.
Clock    TIME of Redis.

What ends while it is open says nothing: those requests began before. While it ramps, two faults in a
row open it again. The record lives an hour beyond its last report: then it is closed. Behind
arguments.lua.
]]
local SHARES, TTL_MS, RAMP_FAULTS_MAX = { 10, 25, 50 }, 3600000, 2
local arg, refusal = integers({
  { 1, "ok", 0, 1e6 }, { 2, "bad", 0, 1e6 }, { 3, "trailing", 0, 1e6 },
  { 4, "hold_ms", 0, 3600000 }, { 7, "faults_max", 1, 1000 }, { 8, "percent", 1, 100 },
  { 9, "requests_min", 1, 1e6 }, { 10, "window_ms", 1000, 600000 }, { 11, "open_ms", 1, 3600000 },
  { 12, "open_ms_max", 1, 3600000 }, { 13, "step_ms", 1, 600000 },
})
if not arg then
  return refusal
end
local probe, owner = ARGV[5], ARGV[6]
if probe ~= "" and probe ~= "ok" and probe ~= "fault" and probe ~= "dropped" then
  return redis.error_reply("COACH_BADARG probe")
end

local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local c, raw = { state = "closed", probe = "" }, redis.call("HGETALL", KEYS[1])
for i = 1, #raw, 2 do
  c[raw[i]] = tonumber(raw[i + 1]) or raw[i + 1]
end
local function number(name)
  return tonumber(c[name]) or 0
end
local function forget()
  c.faults, c.ok, c.bad, c.ok_before, c.bad_before, c.half = 0, 0, 0, 0, 0, now
end
local function trip()
  forget()
  c.state, c.probe, c.trips = "open", "", number("trips") + 1
  c["until"] = now + math.min(arg.open_ms_max, arg.open_ms * 2 ^ math.min(c.trips - 1, 20))
end

if probe ~= "" and c.state == "open" and c.probe == owner then
  if probe == "ok" then
    forget()
    c.state, c.probe, c.step, c.step_ms = "ramping", "", 1, now
  elseif probe == "fault" then
    trip()
  else
    c.probe = ""
  end
elseif c.state ~= "open" then
  local age = now - number("half")
  if age >= arg.window_ms / 2 or age < 0 then
    local recent = age >= 0 and age < arg.window_ms
    c.ok_before, c.bad_before = recent and number("ok") or 0, recent and number("bad") or 0
    c.ok, c.bad, c.half = 0, 0, now
  end
  c.ok, c.bad = number("ok") + arg.ok, number("bad") + arg.bad
  c.faults = arg.ok > 0 and arg.trailing or number("faults") + arg.bad
  local bad = c.bad + number("bad_before")
  local all = bad + c.ok + number("ok_before")
  local most = c.state == "ramping" and math.min(RAMP_FAULTS_MAX, arg.faults_max) or arg.faults_max
  if c.faults >= most or (all >= arg.requests_min and bad * 100 >= arg.percent * all) then
    trip()
  elseif c.state == "ramping" and now - number("step_ms") >= arg.step_ms and arg.ok > 0 then
    c.step, c.step_ms = number("step") + 1, now
    if c.step > #SHARES then
      c.state, c.trips = "closed", 0
    end
  end
end
if arg.hold_ms > 0 then
  c.hold = math.max(number("hold"), now + arg.hold_ms)
end

if arg.ok + arg.bad + arg.hold_ms > 0 or probe ~= "" then
  local fields = {}
  for name, value in pairs(c) do
    fields[#fields + 1] = name
    fields[#fields + 1] = type(value) == "number" and string.format("%.0f", value) or value
  end
  redis.call("HSET", KEYS[1], unpack(fields))
  redis.call("PEXPIRE", KEYS[1], TTL_MS + math.max(0, number("hold") - now))
end
local share = c.state == "closed" and 100 or c.state == "open" and 0 or SHARES[number("step")]
local wait = c.state == "open" and math.max(0, number("until") - now) or 0
return { c.state, share, wait, math.max(0, number("hold") - now) }
