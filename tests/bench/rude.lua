-- Clients that send their next request as soon as they have an answer, whatever it says.
-- Arguments: the request as bytes, in which {id} and {n} are filled in; the number of users; seconds not to be counted.
--
-- wrk's own latencies include refusals. An answer that shows a user tells by the id which request it belongs to, as no
-- two requests at a time ask for the same user.

local ffi = require "ffi"
ffi.cdef "typedef struct { long seconds, nanoseconds; } moment; int clock_gettime(int, moment *);"

local MONOTONIC, STRIDE = 1, 7919  -- a prime: each id comes once before any comes again
local moment = ffi.new("moment")
local request_text, users, ramp, at, number
local sent = {}  -- when each user was asked for
begun, good, other, took = nil, 0, 0, {}  -- global: `done` asks for them

local function now()
  ffi.C.clock_gettime(MONOTONIC, moment)
  return tonumber(moment.seconds) + tonumber(moment.nanoseconds) / 1e9
end

function setup(thread)
  clients = thread
end

function init(args)
  request_text, users, ramp = args[1], tonumber(args[2]), tonumber(args[3])
  at, number = os.time() % users, 0
  fixed = not request_text:find("{", 1, true)
end

function request()
  local instant = now()
  begun = begun or instant + ramp
  if fixed then return request_text end
  at, number = (at + STRIDE) % users, number + 1
  sent[at + 1] = instant
  return (request_text:gsub("{id}", at + 1):gsub("{n}", string.format("%08d", number)))
end

function response(status, headers, body)
  local instant = now()
  if instant < begun then return end
  if status < 200 or status > 299 then
    other = other + 1
    return
  end
  good = good + 1
  local id = body:match('"id":(%d+)')
  local since = id and sent[tonumber(id)]
  if since then took[#took + 1] = instant - since end
end

function done(summary)
  local took, errors = clients:get("took"), summary.errors
  table.sort(took)
  local function quantile(share) return (took[1 + math.floor(share * (#took - 1))] or 0) * 1000 end
  io.write(string.format(
    '\nRESULT {"good": %d, "other": %d, "broken": %d, "seconds": %f, "p50": %f, "p99": %f}\n',
    clients:get("good"), clients:get("other"), errors.connect + errors.read + errors.write,
    now() - (clients:get("begun") or now()), quantile(0.5), quantile(0.99)))
end
