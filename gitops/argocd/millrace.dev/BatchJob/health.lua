-- Health of a BatchJob. What the status says of an older generation counts for nothing: Argo CD would
-- call a job healthy that it has just changed.
local health = { status = "Progressing", message = "waits for the operator" }
if obj.status == nil or obj.status.conditions == nil then
  return health
end
if obj.status.observedGeneration ~= nil and obj.status.observedGeneration < obj.metadata.generation then
  health.message = "waits for the operator to see the change"
  return health
end

local conditions = {}
for _, condition in ipairs(obj.status.conditions) do
  conditions[condition.type] = condition
end
local succeeded = conditions.Succeeded
if succeeded == nil then
  return health
end

health.message = succeeded.reason .. ": " .. succeeded.message
if succeeded.status == "True" then
  health.status = "Healthy"
elseif succeeded.status == "False" or (conditions.Stalled ~= nil and conditions.Stalled.status == "True") then
  health.status = "Degraded"
elseif succeeded.reason == "Suspended" then
  health.status = "Suspended"
elseif obj.status.progress ~= nil then
  health.message = health.message .. " (" .. obj.status.progress .. ")"
end
return health
