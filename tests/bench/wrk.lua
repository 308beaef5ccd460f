-- The requests of tests/bench/workloads.py. Arguments: workload, number of users, seed.

local workload, users, created

local function get(path)
  return "GET " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
end

local function send(method, path, body)
  return method .. " " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    .. #body .. "\r\n\r\n" .. body
end

local requests = {}

function requests.one()
  return get("/users/" .. math.random(users))
end

function requests.page()
  return get("/users?limit=100&after=" .. math.random(1, users - 200))
end

function requests.page1000()
  return get("/users?limit=1000&after=" .. math.random(1, math.max(0, users - 2000)))
end

function requests.create()
  created = created + 1
  return send("POST", "/users", '{"fname":"Grace","lname":"Hopper","email":"' .. prefix .. created
    .. '@example.com","password":"nanoseconds"}')
end

function requests.update()
  return send("PATCH", "/users/" .. math.random(users), '{"fname":"Ada' .. math.random(1000) .. '"}')
end

function requests.mix()
  local dice = math.random(100)
  if dice <= 80 then return requests.one() end
  if dice <= 90 then return requests.page() end
  if dice <= 98 then return requests.update() end
  return requests.create()
end

function init(args)
  workload, users, prefix, created = args[1], tonumber(args[2]), "new" .. args[3] .. "x", 0
  math.randomseed(tonumber(args[3]))
  request = requests[workload]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"answers":%d,"microseconds":%d,"refused":%d,"connect":%d,"broken":%d,"late":%d,'
      .. '"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, errors.status, errors.connect, errors.read + errors.write, errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
