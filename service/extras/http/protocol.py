"""uvicorn's HTTP, bounded in all that a client can make grow, with every error in the shape of the others.

One message at a time: what follows a request stays unparsed until that request is answered. So a head is parsed when
it is whole and its size and number of lines are known; a read that finds no thread free waits as its head's bytes; and
nothing that follows in the same packet can be lost or taken for something else.

When a request is answered, all that was made for it is released. Kept until the next one came, it took its room in the
processor's caches: with 1,000 connections that cost a fifteenth of the throughput.
"""

import asyncio
import re
import time
from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from operator import attrgetter
from typing import ClassVar

import httptools
from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.extras.http import clients
from service.extras.http.backoff import Backoff
from service.extras.http.coalesced_response import CoalescedResponse
from service.extras.http.early_queue import HOST, EarlyQueue, response_bytes
from service.telemetry import metrics
from service.telemetry.record import Record
from service.web.admission import FULL, LATE, Permit, Turn
from service.web.arrival import Arrival
from service.web.middleware import request_id, tell
from service.web.problems import HEAD_TOO_LARGE, MALFORMED_REQUEST, Problem, problem_response

MAX_HEAD = 65_536  # bytes: eight times what browsers and proxies send
MAX_TARGET = 32_768  # bytes of a path and its query: 64,000 % are decoded in 20 ms
MAX_COOKIES = 4096  # bytes, as browsers have it: http.cookies takes 3.5 s for 64 KiB of backslashes
MAX_HEADERS = 100  # as Apache's LimitRequestFields: 13,000 of three bytes each took 17 ms and 1.6 MiB

END_OF_HEAD = b"\r\n\r\n"
END_OF_CHUNKS = re.compile(rb"[^\n]\r\n\r\n")  # or it is in the midst of a chunk
REQUEST_LINE = re.compile(rb"([A-Z-]+) ([!-~]+) HTTP/1\.[01]\r\n")  # RFC 9112, 3
BEGINNING = re.compile(rb"[A-Z-]{1,24}(?: |$)")  # of one that is not complete
REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)

# To be ignored, as we switch to no other protocol (RFC 9110, 7.8). The parser takes what follows for that protocol.
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)

LINGER = 1.0  # seconds that a refused client may go on to send

# Seconds that an idle connection gets when the service ends: the client's next request may be on its way, and gets
# an answer that says it was the last. Closed at once, of 8 busy clients 5 lost a request.
LAST_CALL = 0.5

# Bytes received, as JSON say, and sent that cost as much as a small answer.
RECEIVED_UNIT = 2048
SENT_UNIT = 16_384

MAX_FREE = 8192  # bytes of a request that are read at once; few here have more than 500
CHUNKED_SLICE = 4096  # bytes of a chunked body that are parsed in one turn: made to be slow, they take 6 ms
CHUNKS_UNIT = 64  # ends of lines in it that cost as much as a small answer
MAX_PIECES = 64  # packets of a request: a client that sends more of them takes its time from the others


class HeadTooLarge(Exception):
    """A header is larger than what reads it can bear."""


class Protocol(HttpToolsProtocol):
    """Named to uvicorn in __main__.py."""

    _buffer = b""  # came and is not parsed: a head that is not complete, or what follows a request in progress
    _busy = False  # with a request, from its whole head to the end of its body and of its answer
    _body_left = 0  # bytes of its body that are to come; -1 for a chunked one
    _tail = b""  # the last four bytes of a chunked body
    _running: CoalescedResponse | None = None
    _turn: Turn | None = None  # of the read that waits in the early queue
    _received_at = 0.0  # on the monotonic clock
    _head = b""  # of the request in progress
    _permit: Permit | None = None  # for the request that is being parsed
    _backoff: Backoff | None = None  # in which the connection waits before it is read again
    _debt: tuple[Backoff, float, float] | None = None  # where its next request has to wait, and what it cost when
    _yields = False  # a log-in on this connection was refused or wrong
    _rejected = False
    _ending = False
    _since = 0.0  # when it was last answered, or began to send a head, on the loop's clock
    _unsent = 0  # bytes of answers, when the client was last looked after
    received = 0  # bytes that are kept of what the client sent
    _pieces = 0  # in which the request came
    _early: EarlyQueue | None = None

    _stalled: ClassVar[set["Protocol"]] = set()  # those with more unsent bytes than uvloop likes to keep
    _all_received: ClassVar[int] = 0  # the sum of `received`

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin a connection."""
        super().connection_made(transport)
        self._early = self.app_state.get("early_queue")
        self._since = self.loop.time()
        self._check_keep_alive()
        if len(self.connections) <= clients.FEW:
            clients.enlarge_send_buffer(transport)
        backoff: Backoff | None = self.app_state.get("reconnect_backoff")
        if backoff and backoff.in_debt:  # of clients that connect again, instead of waiting
            self._debt = backoff, 0.0, time.monotonic()
        if len(self.connections) > self.app_state.get("max_clients", clients.MAX_CLIENTS):
            self._evict_first((each for each in self._peers() if each.idle), attrgetter("_since"))  # idle for longest

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is in progress; what came behind it is not carried out."""
        self._keep(-self.received)
        self._buffer = b""
        self._stalled.discard(self)
        if self._early and self._turn:
            self._early.admission.cancel(self._turn)
            self._turn = None
        if self._backoff:
            self._backoff.cancel(self._resume)
        if self._debt and (backoff := self.app_state.get("reconnect_backoff")):
            backoff.charge(self._debt[1])
        if self._running:
            self._running.disconnected = True
            self._running.message_event.set()
            self._running.release()
        super().connection_lost(exc)
        # Or all of them would keep each other from being freed, until the garbage collector looks.
        self.cycle = self.scope = self.headers = self._running = None  # type: ignore[assignment]
        if self.timeout_keep_alive_task:
            self.timeout_keep_alive_task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what came from the network."""
        if self._rejected:
            return
        self._keep(len(data))
        if not self._busy and not self._buffer:
            self._since = self.loop.time()
        self._buffer += data
        self._pieces += 1
        if self._backoff:
            self.flow.pause_reading()  # the application has resumed it, to read the body
            return
        self._advance()
        is_large = self._pieces > MAX_PIECES or self.received > MAX_FREE
        if is_large and not self._turn and (self._body_left or not self._busy):
            self._back_off(1 + len(data) / RECEIVED_UNIT)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field, but no trailer field (RFC 9110, 6.5): there is no end to these."""
        if not self._body_left:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin a request. Raises ValueError when it is malformed, HeadTooLarge."""
        hosts, cookies = [], 0
        for name, value in self.headers:
            if name == b"cookie":
                cookies += len(value)
            elif name == b"host":
                hosts.append(value)
            elif name == b"content-length":
                self._body_left = int(value)
            elif name == b"transfer-encoding":
                self._body_left, self._tail = -1, b""
        may_lack_host = self.parser.get_http_version() == "1.0"
        if len(hosts) > 1 or not all(map(HOST.fullmatch, hosts)) or not (hosts or may_lack_host):
            raise ValueError("RFC 9112, 3.2")
        if cookies > MAX_COOKIES:
            raise HeadTooLarge
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        """End a request's body."""
        self._body_left = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End an answer, and begin on what follows, or later when the client has to wait."""
        self.server_state.total_requests += 1
        cycle = self._running
        if not cycle or self.transport.is_closing():
            return
        self._since = self.loop.time()
        arrival: Arrival = cycle.scope["arrival"]  # type: ignore[typeddict-item] # see `_start_asgi_task`
        if arrival.hashes:
            self._yields = cycle.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.SERVICE_UNAVAILABLE}
        self._running = None
        if not arrival.admitted:
            self._owe(cycle.status, 1 + cycle.sent_bytes / SENT_UNIT + self.received / RECEIVED_UNIT)
        if cycle.keep_alive:
            self._next()
        else:
            self._finish()

    def pause_writing(self) -> None:
        """Make no more answers for a client that does not read them; and cut the oldest of these, if they are many."""
        super().pause_writing()
        self._stalled.add(self)
        while sum(each.transport.get_write_buffer_size() for each in self._stalled) > clients.MAX_UNSENT:
            min(self._stalled, key=attrgetter("_since")).evict()

    def resume_writing(self) -> None:
        """Go on, as they were read."""
        super().resume_writing()
        self._stalled.discard(self)
        self._since = self.loop.time()

    def shutdown(self) -> None:
        """Begin to end: what is in progress is answered, and so is one request more."""
        self._ending = True
        if self._running:
            self._running.keep_alive = False
            self._running.release()
        if self._backoff:
            self._backoff.cancel(self._resume)
            self._resume()
        self.loop.call_later(LAST_CALL, self._end)

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer alone: `_check_keep_alive` sees by itself what has happened meanwhile."""

    # One message after another.

    def _advance(self) -> None:
        """Parse as much of the buffer as belongs to the request in progress, or begin on the next."""
        while self._buffer and not self._rejected:
            if self._body_left:
                chunks = self._buffer.count(b"\n", 0, CHUNKED_SLICE)
                self._parse_body()
                if self._buffer and self._body_left:
                    self._back_off(1 + chunks / CHUNKS_UNIT)
                    return
                if self._backoff:
                    return
            elif self._busy:
                self.flow.pause_reading()
                return
            elif (self._debt and self._pay()) or not self._begin():
                return

    def _begin(self) -> bool:
        """Take a whole head from the buffer; return False when there is none."""
        buffer = self._buffer = self._buffer.lstrip(b"\r\n")  # RFC 9112, 2.2
        end = buffer.find(END_OF_HEAD) + len(END_OF_HEAD)
        if end < len(END_OF_HEAD):
            end = len(buffer)
        lines = buffer.count(b"\n", 0, end)
        if not (REQUEST_LINE if lines else BEGINNING).match(buffer):
            if buffer:
                self._reject(MALFORMED_REQUEST, buffer)
        elif end > MAX_HEAD or lines > MAX_HEADERS + 2 or buffer.find(b" HTTP", 0, end) > MAX_TARGET:
            self._reject(HEAD_TOO_LARGE, buffer)
        elif buffer.endswith(END_OF_HEAD, 0, end):
            self._buffer = buffer[end:]
            self._busy = True
            self._head = buffer[:end]
            self._admit()
            return True
        return False

    def _admit(self) -> None:
        """Parse the head, unless it is that of a read that has to wait for a thread."""
        early = self._early
        self._received_at = time.monotonic()
        if not early or not early.matches(self._head):
            self._parse_head()
        elif permit := early.admission.try_acquire():
            self._parse_head(permit)
        elif early.admission.full:
            self._refuse(FULL)
        else:
            self._turn = early.admission.enqueue(self._received_at + early.admission.wait)
            self._turn.add_done_callback(self._on_turn)

    def _on_turn(self, turn: Turn) -> None:
        if turn is not self._turn:
            return  # the client has left
        self._turn = None
        if turn.exception():
            self._refuse(LATE)
        else:
            self._parse_head(turn.result())
        self._advance()

    def _refuse(self, reason: str) -> None:
        """Answer 503, by the application only where that is not known from the bytes of the head."""
        answer = b""
        if self._early and not self._ending and not self.flow.write_paused:
            answer = self._early.refuse(self._head, reason, self._received_at, self.server_state.default_headers)
        if not answer:
            self._parse_head()
            return
        self._since = self.loop.time()
        self.transport.write(answer)
        self._owe(HTTPStatus.SERVICE_UNAVAILABLE, 1)
        self._next()

    def _parse_head(self, permit: Permit | None = None) -> None:
        self._permit = permit
        self._parse(UPGRADE.sub(b"", self._head))
        if self._permit:  # no request has begun
            self._permit.release()
            self._permit = None

    def _parse_body(self) -> None:
        """Parse what has come of a body, and nothing behind it."""
        if self._body_left > 0:
            part, self._buffer = self._buffer[: self._body_left], self._buffer[self._body_left :]
            self._body_left -= len(part)
            self._parse(part)
        else:
            self._parse_chunked()
        if self._running or self._rejected:
            return
        if self._body_left:  # of a request that has been answered: it is thrown away
            self._back_off(1)
        else:
            self._next()

    def _parse_chunked(self) -> None:
        """Parse a slice of a chunked body, and nothing behind the body: it ends with a line and an empty one."""
        data = self._tail + self._buffer[:CHUNKED_SLICE]
        parsed, searched = len(self._tail), 0
        while self._body_left and parsed < len(data) and not self._rejected:
            found = END_OF_CHUNKS.search(data, searched)
            end = found.end() if found else len(data)
            self._parse(data[parsed:end])
            parsed = searched = end
        self._buffer = data[parsed:] + self._buffer[CHUNKED_SLICE:]
        self._tail = data[max(0, parsed - 4) : parsed]

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # CONNECT: what follows would not be HTTP
            self._rejected = True
            self.cycle.keep_alive = False
        except httptools.HttpParserError as exc:
            self._reject(HEAD_TOO_LARGE if isinstance(exc.__context__, HeadTooLarge) else MALFORMED_REQUEST, data)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle  # type: ignore[assignment] # it is one of ours: see the end of this file
        scope: Scope = cycle.scope  # type: ignore[assignment] # uvicorn's own type knows its own keys only
        scope["arrival"] = Arrival(self._received_at, self._disconnected, self._permit, self._yields)
        cycle.backoff = self.app_state.get("reconnect_backoff")  # type: ignore[attr-defined]
        self._permit = None
        super()._start_asgi_task(cycle, app)

    def _disconnected(self) -> bool:
        return not self._running or self._running.disconnected

    def _owe(self, status: int, cost: float) -> None:
        """Have the next request wait until this answer, which took no thread, has had its share of the event loop."""
        refused = status == HTTPStatus.SERVICE_UNAVAILABLE
        if backoff := self.app_state.get("refused_backoff" if refused else "cheap_backoff"):
            self._debt = backoff, cost, time.monotonic()

    def _pay(self) -> bool:
        """Wait, if need be, before the next request is begun."""
        assert self._debt  # noqa: S101 - for types: asked by the caller
        (backoff, cost, answered_at), self._debt = self._debt, None
        if not cost and self._early and self._early.matches(self._buffer):
            return False  # a new client's read is for a thread
        if self._ending or not backoff.enter(self._resume, cost=cost, answered_at=answered_at):
            return False
        self._backoff = backoff
        self.flow.pause_reading()
        return True

    def _back_off(self, cost: float) -> None:
        """Read more of a request when what has come of it has had its share of the event loop."""
        self._owe(HTTPStatus.OK, cost)
        if not self._backoff and not (self._debt and self._pay()):
            self.loop.call_soon(self._go_on)

    def _resume(self) -> None:
        self._backoff = None
        self._go_on()

    def _go_on(self) -> None:
        if self._backoff or self.transport.is_closing():
            return
        if self._running or self._turn:
            self.flow.resume_reading()
            self._advance()
        else:
            self._next()

    def _next(self) -> None:
        """Have the next request begin, when this one has been answered and the rest of its body has come."""
        self._busy = self._body_left != 0
        if not self._busy:
            self._head = b""
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment] # as at the connection's start
        self._keep(len(self._buffer) - self.received)
        self._pieces = 0
        self.flow.resume_reading()
        if self._buffer:
            self.loop.call_soon(self._advance)

    # Limits.

    def _keep(self, size: int) -> None:
        """Keep so many bytes more of what clients send; when they are too many, evict those that sent most."""
        self.received += size
        Protocol._all_received += size
        if Protocol._all_received > clients.MAX_RECEIVED and size > 0:
            self._evict_first((each for each in self._peers() if each.received), lambda each: -each.received)

    @property
    def idle(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a body, to read an answer."""
        if not self._busy or self._backoff or self._rejected or self.flow.write_paused:
            return True
        return bool(self._body_left)

    def _check_keep_alive(self) -> None:
        """Close a connection that is idle for long. One timer for all its requests: one for each cost 3 %."""
        now = self.loop.time()
        unsent, self._unsent = self._unsent, clients.unsent_bytes(self.transport)
        if not self.idle or self._unsent != unsent:  # the service is at work, or the client reads its answer
            self._since = now
        left = self._since + self.timeout_keep_alive - now
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self._check_keep_alive)
        else:
            self._close()

    def _peers(self) -> Iterator["Protocol"]:
        """Return all connections of this worker, this one among them."""
        return (each for each in self.connections if isinstance(each, Protocol))

    def _evict_first(self, candidates: Iterable["Protocol"], key: Callable[["Protocol"], float]) -> None:
        """Close the first of these connections, in the order of `key`: this one, when there is no other."""
        ordered = sorted(candidates, key=key)
        for each in ordered[: 1 + len(ordered) // clients.EVICT_FRACTION]:
            each.evict()

    def evict(self) -> None:
        """Close this connection to make room for others."""
        metrics.CLIENTS_EVICTED.inc()
        self._stalled.discard(self)
        self.connections.discard(self)  # or the next one to come, before it has gone, would find no room either
        self._keep(-self.received)
        self._close()

    def _close(self) -> None:
        """Close; break off when the client has not read its answer, as close() waits for that without end."""
        self._rejected = True
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _end(self) -> None:
        if not self._turn:
            super().shutdown()

    def _reject(self, problem: Problem, data: bytes) -> None:
        """Answer what cannot be parsed, for which no application is called, and close the connection."""
        answered = self.cycle is not None and not self._running  # and what cannot be parsed is in its body
        found, line = REQUEST_ID.search(self._head or data), REQUEST_LINE.match(self._head or data)
        method, path = (part.decode() for part in line.groups()) if line else ("-", "-")
        record = Record(request_id(found[1] if found else b""), method, path.partition("?")[0])
        record.status, record.code = problem.status, problem.code
        if self._running:  # the application reads the body, and is to log it
            arrival: Arrival = self._running.scope["arrival"]  # type: ignore[typeddict-item] # see `_start_asgi_task`
            arrival.rejected = problem
            self._running.disconnected, self._running.waiting_for_100_continue = True, False
            self._running.message_event.set()
        elif not answered:
            tell(record)
        if not answered:
            self.transport.write(response_bytes(problem_response(problem), record, self.server_state.default_headers))
        self._owe(problem.status, 1)
        self._body_left = -1  # more may come
        self._finish()

    def _finish(self) -> None:
        """End the connection; when the client is still sending, in a moment, or it would get a reset for an answer."""
        self._rejected = True
        if (self._body_left or self._buffer) and self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)
        else:
            self.transport.close()


httptools_impl.RequestResponseCycle = CoalescedResponse  # type: ignore[misc] # uvicorn takes no other from its protocol
