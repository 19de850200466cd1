"""What must happen inside Redis in one piece, in Lua, within the commands of Redis 6.2."""

# Settle an entry and publish what follows from it, or do nothing if it was settled before.
# KEYS: its stream, then the outgoing streams. ARGV: group, entry id, then (entries kept, frame) per outgoing stream.
SETTLE = """
if redis.call('XACK', KEYS[1], ARGV[1], ARGV[2]) == 0 then return 0 end
redis.call('XDEL', KEYS[1], ARGV[2])
for i = 2, #KEYS do
  local keep, frame = ARGV[2 * i - 1], ARGV[2 * i]
  if keep == '0' then
    redis.call('XADD', KEYS[i], '*', 'm', frame)
  else
    redis.call('XADD', KEYS[i], 'MAXLEN', '~', keep, '*', 'm', frame)
  end
end
return 1
"""

# Take or renew a lease. Numbers start at the time, so they grow even where what was given out before is forgotten.
# KEYS: the lease. ARGV: holder, milliseconds.
LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local held = redis.call('HMGET', KEYS[1], 'holder', 'number', 'until')
local number = tonumber(held[2] or 0)
if now >= tonumber(held[3] or 0) then
  number = math.max(number + 1, now)
elseif held[1] ~= ARGV[1] then
  return false
end
local till = string.format('%.0f', now + ARGV[2])
redis.call('HSET', KEYS[1], 'holder', ARGV[1], 'number', string.format('%.0f', number), 'until', till)
return number
"""
