--[[
limit_reserve.lua: reserve one request and its tokens in the user's and the org's window, or in
neither. Behind limit_window.lua, which describes the data.

KEYS[1]  limit:{org}:org            HASH    window of the whole org
KEYS[2]  limit:{org}:leases         ZSET    what is reserved in it
KEYS[3]  limit:{org}:user:<user>    HASH    window of the user
KEYS[4]  limit:{org}:leases:<user>  ZSET    what is reserved in it
KEYS[5]  limit:{org}:hold:<id>      STRING  "held <second> <tokens>" or "ended"
KEYS[6]  limit:{org}:rules          HASH    limits that operators have set

ARGV[1]  id         of the hold: no spaces, never used again
ARGV[2]  least      tokens it will use in any case; integer, 0..tokens
ARGV[3]  tokens     the most it may use; integer, 0..1e9
ARGV[4]  user       its field of the rules
ARGV[5]  settings   the limits where no rule says otherwise, "user_requests user_tokens
                    org_requests org_tokens", each 1..1e12
ARGV[6]  mode       enforce | shadow: reserve whatever the limits say
ARGV[7]  lease_ms   1000..60000: without a renewal for so long, it is refunded
ARGV[8]  hold_s     how long the hold is remembered, at least 121

Returns  {"reserved", tokens}  all of them, or the whole limit if that is less; the same for an id
                         that is held already (a retry)
         {"over", limit, most, left, retry_ms}  nothing reserved. limit: user_requests | user_tokens |
                         org_requests | org_tokens, the one that takes longest; most: what it is;
                         left: what it still has; retry_ms: until it fits
         {"too_large", limit, most}  nothing reserved: least is more than the whole limit
         {"shadow", tokens, limit, most, left, retry_ms}  reserved, and would not have been;
                         retry_ms -1: it would have been too large
         {"ended"}       the id was given back before (its caller had gone): nothing reserved
Errors   COACH_BADARG <name>. Nothing has been written.

Invariants
  I1  user and org window change together or not at all
  I2  sum = the sum of all buckets = what is reserved or used in them; 0 <= each bucket
  I3  in mode enforce no reservation takes a sum above its limit
  I4  a reservation whose owner died is gone from both windows with its lease
]]
local arg, refusal = integers({
  { 2, "least", 0, 1e9 }, { 3, "tokens", 0, 1e9 }, { 7, "lease_ms", 1000, 60000 },
  { 8, "hold_s", 121, 86400 },
})
if not arg then
  return refusal
end
local id, least, tokens, lease_ms, hold_s = ARGV[1], arg.least, arg.tokens, arg.lease_ms, arg.hold_s
local settings, is_shadow = vector(ARGV[5], 0), ARGV[6] == "shadow"
if not string.match(id, "^%S+$") then
  return redis.error_reply("COACH_BADARG id")
end
if least > tokens then
  return redis.error_reply("COACH_BADARG least")
end
if not are_ints_in(settings, 4, 1, 1e12) then
  return redis.error_reply("COACH_BADARG settings")
end
if ARGV[6] ~= "enforce" and not is_shadow then
  return redis.error_reply("COACH_BADARG mode")
end

local hold, _, held_tokens = read_hold(KEYS[5])
if hold == "ended" then
  return { "ended" }
elseif hold then
  return { "reserved", held_tokens }
end

local limits = read_rules(KEYS[6], ARGV[4], settings)
local org, user = open_limit(KEYS[1], KEYS[2], lease_ms), open_limit(KEYS[3], KEYS[4], lease_ms)
local amount = is_shadow and tokens or math.min(tokens, limits[2], limits[4])
local checks = {
  { "user_requests", user, 1, 1, limits[1] },
  { "user_tokens", user, 2, amount, limits[2] },
  { "org_requests", org, 1, 1, limits[3] },
  { "org_tokens", org, 2, amount, limits[4] },
}
local smaller = limits[2] <= limits[4] and checks[2] or checks[4]
local over, retry_ms = nil, 0
if least > smaller[5] then
  over, retry_ms = smaller, -1
else
  for _, check in ipairs(checks) do
    local ms = slide_ms(check[2], check[3], math.min(check[4], check[5]), check[5])
    if ms == -1 then
      ms = WINDOW_S * 1000 -- I2 does not hold; whatever it is, it is gone by then
    end
    if ms > retry_ms then
      over, retry_ms = check, ms
    end
  end
end

local reply = { "reserved", amount }
if over and retry_ms == -1 and not is_shadow then
  reply = { "too_large", over[1], over[5] }
elseif over then
  local left = math.max(0, over[5] - over[2].sum[over[3]])
  reply = { over[1], over[5], left, retry_ms }
  if is_shadow then
    reply = { "shadow", amount, unpack(reply) }
  else
    reply = { "over", unpack(reply) }
  end
end
if is_shadow or not over then
  -- One second for both, or settling could find it in one window and not in the other.
  local second = math.max(user.now_s, org.now_s)
  lease_limit(org, id, second, amount, hold_s)
  lease_limit(user, id, second, amount, hold_s)
  redis.call("SET", KEYS[5], string.format("held %.0f %.0f", second, amount), "EX", hold_s)
end
close_limit(org, hold_s)
close_limit(user, hold_s)
return reply
