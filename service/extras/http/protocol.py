"""uvicorn's HTTP, bounded in all that a client can make grow, with every error in the shape of the others.

One message at a time: what follows a request stays unparsed until that request is answered. So a head is parsed when
it is whole and its size and number of lines are known; a read that finds no thread free waits as the bytes of its
head; and nothing that follows in the same packet can be lost or taken for something else.

Whatever was made for a request is released when it is answered. Kept until the next one came, it displaced others from
the processor's caches: with 1,000 connections that cost a fifteenth of the throughput.
"""

import asyncio
import time
from enum import Enum, auto
from http import HTTPStatus
from typing import NamedTuple

import httptools
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.extras.http.backoff import Backoff
from service.extras.http.clients import unsent_bytes
from service.extras.http.coalesced_response import CoalescedResponse
from service.extras.http.early_queue import HOST
from service.extras.http.framing import CHUNKED, CHUNKED_SLICE, Framing, HeadTooLarge, Malformed, without_upgrade
from service.extras.http.raw_response import rejected_record, response_bytes
from service.extras.http.state import HttpState
from service.web.admission import FULL, LATE, Permit, Turn
from service.web.arrival import Arrival
from service.web.middleware import finish_request
from service.web.problems import HEAD_TOO_LARGE, MALFORMED_REQUEST, Problem, problem_response

MAX_COOKIES = 4096  # bytes, as browsers have it: http.cookies takes 3.5 s for 64 KiB of backslashes

# After these, the next log-in of a connection waits behind all others.
LOG_IN_FAILED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}

LINGER = 1.0  # seconds that a rejected client may go on to send

# Seconds until an idle connection is closed when the service stops: a request may be on its way, and gets a response
# that says it was the last. Closed at once, 5 of 8 busy clients lost a request.
SHUTDOWN_GRACE = 0.5

# What costs as much as a small response: bytes received, as JSON say, and sent; ends of lines in a chunked body.
RECEIVED_UNIT = 2048
SENT_UNIT = 16_384
CHUNKS_UNIT = 64

# A request of more bytes, or in more packets, has to wait for its share of the event loop: see `_back_off`.
MAX_UNCHARGED = 8192  # few requests here have more than 500
MAX_PACKETS = 64


class ClientState(Enum):
    """What the client is to send next, as in h11."""

    IDLE = auto()  # a head, which may have begun
    SEND_BODY = auto()  # the rest of a body
    DONE = auto()  # nothing: its request is whole, or QUEUED; what follows stays in the buffer
    CLOSED = auto()  # nothing: no more is read


class ServiceState(Enum):
    """What the service does for the request."""

    IDLE = auto()  # nothing: there is none, or it is answered
    QUEUED = auto()  # it waits for a permit, unparsed
    SEND_RESPONSE = auto()  # the application runs


class Charge(NamedTuple):
    """What a response that took no thread cost: the next request of its client may have to wait for it."""

    backoff: Backoff
    cost: float
    answered_at: float  # on the monotonic clock


class Protocol(HttpToolsProtocol):
    """A connection. Named to uvicorn in __main__.py."""

    cycle: CoalescedResponse  # see the end of this file

    _client = ClientState.IDLE
    _service = ServiceState.IDLE
    _stopping = False

    # The request in progress.
    _head = b""
    _received_at = 0.0  # on the monotonic clock
    _packets = 0  # in which it came
    _turn: Turn | None = None  # while it is QUEUED
    _permit: Permit | None = None  # acquired for it before it is parsed

    # The connection.
    received = 0  # bytes that are kept of what the client sent: see clients.py
    idle_since = 0.0  # when it was last answered, or began to send a head, on the loop's clock
    _unsent = 0  # bytes of responses, when the keep-alive timer last looked
    _log_in_failed = False  # the last one on it
    _charge: Charge | None = None
    _backoff: Backoff | None = None  # in which it waits, unread
    _timer: asyncio.TimerHandle

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin a connection."""
        super().connection_made(transport)
        self._framing = Framing()
        self._state: HttpState = self.app_state.get("http") or self.app_state.setdefault("http", HttpState())
        self.idle_since = self.loop.time()
        self._check_keep_alive()
        if self._state.reconnect.in_debt:  # to clients that connect again instead of waiting
            self._charge = Charge(self._state.reconnect, 0.0, time.monotonic())
        self._state.clients.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is in progress; what came behind it is not carried out."""
        self._client = ClientState.CLOSED
        self._framing.buffer = b""
        self._state.clients.remove(self)
        self._timer.cancel()
        if self._state.early_queue and self._turn:
            self._state.early_queue.admission.cancel(self._turn)
            self._turn = None
        if self._backoff:
            self._backoff.cancel(self._resume)
        if self._charge:
            self._state.reconnect.charge(self._charge.cost)
        if self._service is ServiceState.SEND_RESPONSE:
            self.cycle.cancel_backoff()
        self._service = ServiceState.IDLE
        super().connection_lost(exc)
        # Or all of them would keep each other from being freed, until the garbage collector looks.
        self.cycle = self.scope = self.headers = None  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        """Take what came from the network."""
        if self._client is ClientState.CLOSED:
            return
        self._state.clients.resize(self, self.received + len(data))
        if self._client is ClientState.IDLE and not self._framing.buffer:
            self.idle_since = self.loop.time()
        self._framing.buffer += data
        self._packets += 1
        if self._backoff:
            self.flow.pause_reading()  # the application has resumed it, to read the body
            return
        self._advance()
        is_large = self._packets > MAX_PACKETS or self.received > MAX_UNCHARGED
        if is_large and self._client in {ClientState.IDLE, ClientState.SEND_BODY}:
            self._back_off(1 + len(data) / RECEIVED_UNIT)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header field, but no trailer field (RFC 9110, 6.5): there is no end to these."""
        if self._client is not ClientState.SEND_BODY:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the application. Raises Malformed, HeadTooLarge."""
        hosts, cookies = [], 0
        for name, value in self.headers:
            if name == b"cookie":
                cookies += len(value)
            elif name == b"host":
                hosts.append(value)
            elif name == b"content-length":
                self._framing.body_left = int(value)
            elif name == b"transfer-encoding":
                self._framing.body_left = CHUNKED
        may_lack_host = self.parser.get_http_version() == "1.0"
        if len(hosts) > 1 or not all(map(HOST.fullmatch, hosts)) or not (hosts or may_lack_host):
            raise Malformed  # RFC 9112, 3.2
        if cookies > MAX_COOKIES:
            raise HeadTooLarge
        arrival = Arrival(self._received_at, self._disconnected, self._permit, self._log_in_failed)
        self.scope["arrival"] = arrival  # type: ignore[typeddict-unknown-key] # uvicorn's type knows its own keys only
        super().on_headers_complete()
        self._permit = None
        self.cycle.arrival, self.cycle.backoff = arrival, self._state.reconnect
        if self._stopping:
            self.cycle.keep_alive = False
        self._client, self._service = ClientState.SEND_BODY, ServiceState.SEND_RESPONSE

    def on_message_complete(self) -> None:
        """End the request's body."""
        self._client = ClientState.DONE
        self._framing.body_left = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """End the response, and read what follows, or later when the client has to wait."""
        self.server_state.total_requests += 1
        if self._service is not ServiceState.SEND_RESPONSE or self.transport.is_closing():
            return
        self._service = ServiceState.IDLE
        self.idle_since = self.loop.time()
        cycle = self.cycle
        if cycle.arrival.hashes:
            self._log_in_failed = cycle.status in LOG_IN_FAILED
        if not cycle.arrival.admitted:
            self._charge_for(cycle.status, 1 + cycle.sent_bytes / SENT_UNIT + self.received / RECEIVED_UNIT)
        if cycle.keep_alive:
            self._read_on()
        else:
            self._finish(still_sending=self._client is ClientState.SEND_BODY or bool(self._framing.buffer))

    def pause_writing(self) -> None:
        """Make no more responses for a client that does not read them."""
        super().pause_writing()
        self._state.clients.stall(self)

    def resume_writing(self) -> None:
        """Go on, as the client has read them."""
        super().resume_writing()
        self._state.clients.resume(self)
        self.idle_since = self.loop.time()

    def shutdown(self) -> None:
        """Begin to stop: what is in progress is answered, and so is one more request."""
        self._stopping = True
        if self._service is ServiceState.SEND_RESPONSE:
            self.cycle.keep_alive = False
            self.cycle.cancel_backoff()
        if self._backoff:
            self._backoff.cancel(self._resume)
            self._resume()
        self.loop.call_later(SHUTDOWN_GRACE, self._stop)

    def _stop(self) -> None:
        if self._service is not ServiceState.QUEUED:
            super().shutdown()

    # One message after another.

    def _advance(self) -> None:
        """Parse as much of the buffer as belongs to the request in progress, or begin on the next."""
        while self._framing.buffer and self._client is not ClientState.CLOSED:
            if self._client is ClientState.SEND_BODY:
                if not self._parse_body():
                    return
            elif self._client is ClientState.DONE:
                self.flow.pause_reading()
                return
            elif self._enter_backoff() or not self._begin():
                return

    def _begin(self) -> bool:
        """Begin on the next request; return False when its head is not whole."""
        try:
            self._head = self._framing.take_head()
        except (Malformed, HeadTooLarge) as exc:
            self._reject(HEAD_TOO_LARGE if isinstance(exc, HeadTooLarge) else MALFORMED_REQUEST, self._framing.buffer)
            return False
        if not self._head:
            return False
        self._client = ClientState.DONE
        self._admit()
        return True

    def _admit(self) -> None:
        """Parse the head, unless it is that of a read that has to wait for a thread."""
        early = self._state.early_queue
        self._received_at = time.monotonic()
        if not early or not early.matches(self._head):
            self._parse_head()
        elif permit := early.admission.try_acquire():
            self._parse_head(permit)
        elif early.admission.full:
            self._refuse(FULL)
        else:
            self._service = ServiceState.QUEUED
            self._turn = early.admission.enqueue(self._received_at + early.admission.wait)
            self._turn.add_done_callback(self._on_turn)

    def _on_turn(self, turn: Turn) -> None:
        if turn is not self._turn:
            return  # the client has left
        self._service, self._turn = ServiceState.IDLE, None
        if turn.exception():
            self._refuse(LATE)
        else:
            self._parse_head(turn.result())
        self._advance()

    def _refuse(self, reason: str) -> None:
        """Answer 503: without the application, where the bytes of the head suffice for that."""
        response = b""
        if self._state.early_queue and not self._stopping and not self.flow.write_paused:
            headers = self.server_state.default_headers
            response = self._state.early_queue.refuse(self._head, reason, self._received_at, headers)
        if not response:
            self._parse_head()
            return
        self.idle_since = self.loop.time()
        self.transport.write(response)
        self._charge_for(HTTPStatus.SERVICE_UNAVAILABLE, 1)
        self._read_on()

    def _parse_head(self, permit: Permit | None = None) -> None:
        self._permit = permit
        self._parse(without_upgrade(self._head))
        if self._permit:  # no application was started
            self._permit.release()
            self._permit = None

    def _parse_body(self) -> bool:
        """Parse what has come of the body, which nobody reads when the request is answered; return False to pause."""
        lines = self._framing.buffer.count(b"\n", 0, CHUNKED_SLICE)
        for piece in self._framing.take_body():
            self._parse(piece)
            if self._client is ClientState.CLOSED:
                break
        is_answered = self._service is ServiceState.IDLE
        if self._client is ClientState.SEND_BODY and (self._framing.buffer or is_answered):
            self._back_off(1 + lines / CHUNKS_UNIT)
            return False
        if self._client is ClientState.DONE and is_answered:
            self._read_on()
        return True

    def _parse(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:  # CONNECT: what follows would not be HTTP
            self._client = ClientState.CLOSED
            self.cycle.keep_alive = False
        except httptools.HttpParserError as exc:
            self._reject(HEAD_TOO_LARGE if isinstance(exc.__context__, HeadTooLarge) else MALFORMED_REQUEST, data)

    def _read_on(self) -> None:
        """Read what comes next: another request, when this one is whole and answered, or the rest of its body."""
        if self._client is ClientState.DONE:
            self._client = ClientState.IDLE
            self._head = b""
            self.cycle = self.scope = self.headers = None  # type: ignore[assignment] # as at the connection's start
        self._state.clients.resize(self, len(self._framing.buffer))
        self._packets = 0
        self.flow.resume_reading()
        if self._framing.buffer:
            self.loop.call_soon(self._advance)

    def _disconnected(self) -> bool:
        return self._service is not ServiceState.SEND_RESPONSE or self.cycle.disconnected

    # Back-off: a response that takes no thread has its share of the event loop.

    def _charge_for(self, status: int, cost: float) -> None:
        """Have the next request wait for a response that cost so much, where 1 is a small one."""
        refused = status == HTTPStatus.SERVICE_UNAVAILABLE
        self._charge = Charge(self._state.refused if refused else self._state.cheap, cost, time.monotonic())

    def _enter_backoff(self) -> bool:
        """Return whether the client has to wait, unread, before its next request begins."""
        charge, self._charge, early = self._charge, None, self._state.early_queue
        if not charge or self._stopping:
            return False
        if not charge.cost and early and early.matches(self._framing.buffer):
            return False  # the first request of a new client, which takes a thread
        if not charge.backoff.enter(self._resume, cost=charge.cost, answered_at=charge.answered_at):
            return False
        self._backoff = charge.backoff
        self.flow.pause_reading()
        return True

    def _back_off(self, cost: float) -> None:
        """Read more of a request when what has come of it has had its share of the event loop."""
        self._charge_for(HTTPStatus.OK, cost)
        if not self._backoff and not self._enter_backoff():
            self.loop.call_soon(self._go_on)

    def _resume(self) -> None:
        self._backoff = None
        self._go_on()

    def _go_on(self) -> None:
        if self._backoff or self.transport.is_closing():
            return
        if self._service is ServiceState.IDLE:
            self._read_on()
        else:
            self.flow.resume_reading()
            self._advance()

    # The end of a connection.

    @property
    def idle(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a body, to read a response."""
        return self._client is not ClientState.DONE or self._backoff is not None or self.flow.write_paused

    def _check_keep_alive(self) -> None:
        """Close a connection that is idle for long. One timer for all its requests: one for each cost 3 %."""
        now = self.loop.time()
        unsent, self._unsent = self._unsent, unsent_bytes(self.transport)
        if not self.idle or self._unsent != unsent:  # the service is at work, or the client reads its response
            self.idle_since = now
        left = self.idle_since + self.timeout_keep_alive - now
        if left > 0:
            self._timer = self.loop.call_later(left, self._check_keep_alive)
        else:
            self.close()

    def close(self) -> None:
        """End the connection; break off when the client does not read, as the transport would wait without end."""
        self._client = ClientState.CLOSED
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _reject(self, problem: Problem, data: bytes) -> None:
        """Answer what cannot be parsed, for which no application is called, and close the connection."""
        is_running = self._service is ServiceState.SEND_RESPONSE
        if is_running:  # the application reads the body, and logs the request
            self.cycle.arrival.rejected = problem
            self.cycle.disconnected, self.cycle.waiting_for_100_continue = True, False
            self.cycle.message_event.set()
        if is_running or self._client is not ClientState.SEND_BODY:  # or it is the body of an answered request
            record = rejected_record(problem, self._head or data)
            self.transport.write(response_bytes(problem_response(problem), record, self.server_state.default_headers))
            if not is_running:
                finish_request(record)
        self._charge_for(problem.status, 1)
        self._finish(still_sending=True)

    def _finish(self, *, still_sending: bool) -> None:
        """End the connection: a moment later if the client is still sending, or a reset would destroy its response."""
        self._client = ClientState.CLOSED
        if still_sending and self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER, self.transport.close)
        else:
            self.transport.close()


httptools_impl.RequestResponseCycle = CoalescedResponse  # type: ignore[misc] # uvicorn takes no other from its protocol
