-- Reply: what the job has paid and how many calls it is making, as strings; nothing if that is not known.
local accounts, bills = KEYS[1], KEYS[2]

local paid = redis.call('HGET', accounts, ARGV[1])
if not paid then
  return {}
end
local open = 0
for _, bill in ipairs(redis.call('HVALS', bills)) do
  if string.match(bill, '^%d+ (.*)$') == ARGV[1] then
    open = open + 1
  end
end
return {paid, tostring(open)}
