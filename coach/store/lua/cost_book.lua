--[[
cost_book.lua: add what one worker has booked on an org in an hour, once. Behind arguments.lua.

The books of an org, all keys with the hash tag {org}. Hours and months are UTC, by the clock of the
worker that booked: they are records, nothing is decided by them.
KEYS[1]  flushed  STRING  number of the last flush of this worker that is in the books
KEYS[2]  hour     HASH  field -> "requests input cache_write cache_read output nano unpriced"
         nano: nano-dollars; unpriced: tokens whose price nobody knew; the others: counts.
         field: JSON [assignment, provider, model, reason]
KEYS[3]  users    HASH  likewise, field: JSON [user, assignment, provider, model, reason]
KEYS[4]  hours    ZSET  hours that have books; member and score: hours since the epoch
KEYS[5]  month    HASH  nano, unpriced: totals of the month

ARGV[1]  flush         integer, 1..2^53: numbers of a worker's flushes of an org only grow
ARGV[2]  hour          integer, 1..1e9: hours since the epoch
ARGV[3]  keep_s        integer, 1..2^31: how long hour, hours and month are kept
ARGV[4]  user_keep_s   likewise users
ARGV[5]  flushed_s     likewise flushed
ARGV[6]  fields        integer, 0..(#ARGV - 6) / 2: so many pairs are of `hour`, the rest of `users`
ARGV[7…] field, amounts  pairs; each amount an integer, 0..2^50

Returns  "booked"; "known" for a flush that was booked before (a retry): nothing changes
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants
  I1  a flush is in all of hour, users and month, or in none
  I2  per measure: sum over hour = sum over users (while both are kept) = what was booked
]]
local flush, hour = tonumber(ARGV[1]), tonumber(ARGV[2])
local keep_s, user_keep_s, flushed_s = tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local fields = tonumber(ARGV[6])
local MEASURES, NANO, UNPRICED = 7, 6, 7

local function amounts_of(text)
  local amounts = {}
  for number in string.gmatch(text, "%d+") do
    amounts[#amounts + 1] = tonumber(number)
  end
  return amounts
end

if not is_int_in(flush, 1, 2 ^ 53) then
  return redis.error_reply("COACH_BADARG flush")
end
if not is_int_in(hour, 1, 1e9) then
  return redis.error_reply("COACH_BADARG hour")
end
for name, seconds in pairs({ keep_s = keep_s, user_keep_s = user_keep_s, flushed_s = flushed_s }) do
  if not is_int_in(seconds, 1, 2 ^ 31) then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
if not is_int_in(fields, 0, (#ARGV - 6) / 2) or #ARGV % 2 ~= 0 then
  return redis.error_reply("COACH_BADARG fields")
end
local booked = {}
for i = 7, #ARGV, 2 do
  local amounts = amounts_of(ARGV[i + 1])
  if #amounts ~= MEASURES then
    return redis.error_reply("COACH_BADARG amounts")
  end
  for _, amount in ipairs(amounts) do
    if not is_int_in(amount, 0, 2 ^ 50) then
      return redis.error_reply("COACH_BADARG amounts")
    end
  end
  booked[#booked + 1] = { ARGV[i], amounts }
end

local last = tonumber(redis.call("GET", KEYS[1]) or 0)
if flush <= last then
  return "known"
end
redis.call("SET", KEYS[1], ARGV[1], "EX", flushed_s)

local nano, unpriced = 0, 0
for i, cell in ipairs(booked) do
  local key = i <= fields and KEYS[2] or KEYS[3]
  local sums = amounts_of(redis.call("HGET", key, cell[1]) or "0 0 0 0 0 0 0")
  for m = 1, MEASURES do
    sums[m] = string.format("%.0f", sums[m] + cell[2][m])
  end
  redis.call("HSET", key, cell[1], table.concat(sums, " "))
  if i <= fields then
    nano, unpriced = nano + cell[2][NANO], unpriced + cell[2][UNPRICED]
  end
end
redis.call("HINCRBY", KEYS[5], "nano", string.format("%.0f", nano))
redis.call("HINCRBY", KEYS[5], "unpriced", string.format("%.0f", unpriced))
redis.call("ZADD", KEYS[4], hour, ARGV[2])
for _, key in ipairs({ KEYS[2], KEYS[4], KEYS[5] }) do
  redis.call("EXPIRE", key, keep_s)
end
redis.call("EXPIRE", KEYS[3], user_keep_s)
return "booked"
