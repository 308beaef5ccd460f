-- The requests of tests/bench/workloads.py. Arguments: workload, number of users, seed.

local workload, users, created

local function get(path, header)
  return "GET " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. (header or "") .. "\r\n"
end

local function send(method, path, body, header)
  return method .. " " .. path .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n" .. (header or "")
    .. "Content-Type: application/json\r\nContent-Length: " .. #body .. "\r\n\r\n" .. body
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

function requests.update(header)
  return send("PATCH", "/users/" .. math.random(users), '{"fname":"Ada' .. math.random(1000) .. '"}', header)
end

function requests.update_keyed()
  created = created + 1
  return requests.update("Idempotency-Key: " .. prefix .. created .. "\r\n")
end

function requests.update_matched()
  return requests.update("If-Match: *\r\n")
end

function requests.newest()
  return get("/users?limit=100&order=-id&after=" .. math.random(200, users))
end

function requests.ids()
  local first, ids = math.random(1, users - 9700), {}
  for number = 1, 100 do ids[number] = first + 97 * number end
  return get("/users?limit=100&id=" .. table.concat(ids, ","))
end

function requests.prefix()
  return get("/users?limit=100&q=last" .. math.random(10, 99))
end

function requests.since()
  return get("/users?limit=100&updated_since=2025-01-01T00:0" .. math.random(0, 2) .. ":00Z")
end

function requests.counted()
  return get("/users?limit=100&after=" .. math.random(1, users - 200), "Prefer: count=exact\r\n")
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
