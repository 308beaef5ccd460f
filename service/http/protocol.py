"""uvicorn's HTTP, bounded, with the answer to what is no HTTP in the shape of every other error.

A read that finds no thread free waits here for its turn, as the bytes that came: nothing is made of them before.
Parsed, each with a task, they had left the processor's caches when their turns came. In a profile of each, a request
with 512 connections cost 1.31 times what it does with 64; unread, in a sketch of this, 1.06 times.
"""

import asyncio
import re
import time
from http import HTTPStatus
from uuid import uuid4

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.admission import Admission
from service.http.problems import HEAD_TOO_LARGE, MALFORMED_REQUEST, Problem, render
from service.telemetry import metrics

LARGEST_HEAD = 65_536  # bytes: eight times what browsers and proxies send; httptools itself has no limit

LINGER = 1.0  # seconds that a refused client may go on to send

# Seconds that an idle connection gets when the service ends: the client's next request may be on its way, and gets
# an answer that says it was the last. Closed at once, of 8 busy clients 5 lost a request.
LAST_CALL = 0.5


class Protocol(HttpToolsProtocol):
    """Named to uvicorn in __main__.py."""

    _head = 0  # bytes that came since the last request, of a head that is not complete
    _wrong = MALFORMED_REQUEST  # with what cannot be parsed
    _refused = False
    _ending = False
    _running: RequestResponseCycle | None = None  # `self.cycle` is the newest, which may still wait for this one
    _queue: Admission | None = None  # which whole requests that begin like this wait in
    _beginning: re.Pattern[bytes]
    _turn: "asyncio.Future[None] | None" = None  # of the request that waits, unread
    _unread = b""
    _came = 0.0  # when it came, on the monotonic clock
    _place: Admission | None = None  # taken for the request that is being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin a connection."""
        super().connection_made(transport)
        if unread := self.app_state.get("unread"):
            self._queue, self._beginning = unread

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is in progress; requests that came behind it are not carried out."""
        self.pipeline.clear()
        if self._queue and self._turn:
            self._queue.leave(self._turn)
            self._turn = None
        if self._running:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it, after a reset, to keep all this in memory until then

    def data_received(self, data: bytes) -> None:
        """Take what came from the network."""
        if self._refused:
            return
        if self._turn:  # what comes behind a request that waits does so too
            self._unread += data
            self.flow.pause_reading()
        elif not self._queue or not self._is_whole(data):
            self._read(data)
        elif self._queue.take_free():
            self._read(data, self._queue)
        elif self._queue.full:
            self._read(data)  # to be refused
        else:
            self._unset_keepalive_if_required()
            self._unread, self._came = data, time.monotonic()
            self._turn = self._queue.line_up(self._came + self._queue.wait)
            self._turn.add_done_callback(self._turn_comes)

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._head = 0
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > LARGEST_HEAD:
            self._wrong = HEAD_TOO_LARGE
            raise ValueError  # it came all at once; the parser stops here
        super().on_headers_complete()
        if self._ending:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a part of its body, which is limited elsewhere."""
        self._head = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End a request."""
        self._head = 0
        super().on_message_complete()

    def shutdown(self) -> None:
        """Begin to end: what is in progress is answered, and so is one request more."""
        self._ending = True
        self.loop.call_later(LAST_CALL, self._end)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words help nobody
        """Answer bytes that cannot be parsed, for which no application is called, and close."""
        if self.cycle and not self.cycle.response_complete and not self.cycle.more_body:
            # They came behind a whole request, which is being carried out: it gets its answer, they get none.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._refuse(self._wrong)

    def _is_whole(self, data: bytes) -> bool:
        """Tell whether `data` is one whole read, and the next thing to do on this connection."""
        idle = self.cycle is None or self.cycle.response_complete
        return bool(idle and not self._head and self._beginning.match(data) and data.endswith(b"\r\n\r\n"))

    def _turn_comes(self, turn: "asyncio.Future[None]") -> None:
        if turn is not self._turn:
            return  # the client has left
        data, self._unread, self._turn = self._unread, b"", None
        self._read(data, None if turn.exception() else self._queue)  # without a place: to be refused

    def _read(self, data: bytes, place: Admission | None = None) -> None:
        """Parse what came, for which a place may have been taken."""
        self._place = place
        self._head += len(data)
        super().data_received(data)
        if self._place:  # no request has begun
            self._place.give_back()
            self._place = None
        if self._head > LARGEST_HEAD and not self._refused:
            self._refuse(HEAD_TOO_LARGE)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        scope: Scope = cycle.scope  # type: ignore[assignment] # uvicorn's own type knows its own keys only
        scope["came"], scope["held"] = self._came, [self._place] if self._place else []
        self._came, self._place = 0.0, None
        super()._start_asgi_task(cycle, app)

    def _end(self) -> None:
        if not self._turn:
            super().shutdown()

    def _refuse(self, problem: Problem) -> None:
        metrics.PROBLEMS.add(problem.code)
        response = render(problem, headers={"X-Request-ID": uuid4().hex})
        status = HTTPStatus(response.status_code)
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() + head + b"\r\n" + response.body)
        # Closed at once, with bytes still coming, the client would get a reset in place of the answer.
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)
