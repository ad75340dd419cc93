--[[
queue_again.lua: note in an essay's record under which id it is graded again.

KEYS[1]  record  HASH  of the essay (queue_jobs.lua): "again:<id>" -> kind

ARGV[1]  id of the second grade's job, not empty   ARGV[2]  kind, not empty

Returns  1 noted; 0 the record has outlived its time: nothing changed
Errors   COACH_BADARG <name>. Nothing has been written.
]]
for i, name in ipairs({ "id", "kind" }) do
  if ARGV[i] == "" then
    return redis.error_reply("COACH_BADARG " .. name)
  end
end
if redis.call("EXISTS", KEYS[1]) == 0 then
  return 0
end
redis.call("HSET", KEYS[1], "again:" .. ARGV[1], ARGV[2])
return 1
