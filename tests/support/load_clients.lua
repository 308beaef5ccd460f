-- Clients that ask for one user after another; one that is refused comes again when Retry-After says, or up to as much
-- later. wrk does not tell which connection it asks to wait: as many wait as were refused. Argument: the number of users.

local pauses, first, last = {}, 1, 0
local users

function init(args)
  users = tonumber(args[1])
end

function request()
  return "GET /users/" .. math.random(users) .. " HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
end

function response(status, headers)
  last = last + 1
  pauses[last] = status == 503 and headers["retry-after"] * (1000 + math.random(1000)) or 0
end

function delay()
  if first > last then return 0 end
  local pause = pauses[first]
  pauses[first] = nil
  first = first + 1
  return pause
end

function done(summary)
  local errors = summary.errors
  io.write(string.format("\nRESULT %d %d %d %d\n", summary.requests, errors.status, summary.duration,
    errors.connect + errors.read + errors.write + errors.timeout))
end
