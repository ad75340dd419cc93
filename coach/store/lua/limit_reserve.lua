--[[
limit_reserve.lua: reserve one request and its tokens in the user's and the org's window, or in
neither. Behind budget_window.lua.

KEYS[1]  limit:{org}:user:<user>  HASH    window of 60 s: requests, tokens
KEYS[2]  limit:{org}:org          HASH    likewise, of the whole org
KEYS[3]  limit:{org}:hold:<id>    STRING  "held <second> <tokens>" or "ended"

ARGV[1]  tokens          integer, 0..1e9
ARGV[2]  limits          "user_requests user_tokens org_requests org_tokens", each 1..1e12
ARGV[3]  hold_s          how long the reservation is remembered, at least 61

Returns  {"reserved"}; the same for an id that is held already (a retry)
         {"over", limit, left, retry_ms}  nothing reserved. limit: user_requests | user_tokens |
                         org_requests | org_tokens, the one that takes longest; left: what it still
                         has; retry_ms: until it fits, -1 when it is more than the whole limit
         {"ended"}       the id was given back before (its caller had gone): nothing reserved
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants
  I1  user and org window change together or not at all
  I2  sum = the sum of all buckets = what is reserved or used in them; 0 <= each bucket
  I3  a reservation whose owner died stops counting with its second, 60 s after it was made
]]
local tokens, limits, hold_s = tonumber(ARGV[1]), vector(ARGV[2], 0), tonumber(ARGV[3])
if not is_int_in(tokens, 0, 1e9) then
  return redis.error_reply("COACH_BADARG tokens")
end
if not are_ints_in(limits, 4, 1, 1e12) then
  return redis.error_reply("COACH_BADARG limits")
end
if not is_int_in(hold_s, 61, 86400) then
  return redis.error_reply("COACH_BADARG hold_s")
end

local hold = redis.call("GET", KEYS[3])
if hold == "ended" then
  return { "ended" }
elseif hold then
  return { "reserved" }
end

local time = redis.call("TIME")
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local user, org = open_window(KEYS[1], 2, 60, now_ms), open_window(KEYS[2], 2, 60, now_ms)
local checks = {
  { "user_requests", user, 1, 1, limits[1] },
  { "user_tokens", user, 2, tokens, limits[2] },
  { "org_requests", org, 1, 1, limits[3] },
  { "org_tokens", org, 2, tokens, limits[4] },
}
local over, retry_ms = nil, 0
for _, check in ipairs(checks) do
  local ms = slide_ms(check[2], check[3], check[4], check[5])
  if retry_ms ~= -1 and (ms == -1 or ms > retry_ms) then
    over, retry_ms = check, ms
  end
end
if over then
  local left = math.max(0, over[5] - over[2].sum[over[3]])
  return { "over", over[1], left, retry_ms }
end

-- One second for both, or settling could find it in one window and not in the other.
local second = math.max(user.now_s, org.now_s)
spend(user, second, { 1, tokens })
spend(org, second, { 1, tokens })
close_window(user, hold_s)
close_window(org, hold_s)
redis.call("SET", KEYS[3], string.format("held %.0f %.0f", second, tokens), "EX", hold_s)
return { "reserved" }
