"""uvicorn's HTTP, bounded, with the answer to what is no HTTP in the shape of every other error.

A read that finds no thread free waits here for its turn, as the bytes that came: see unread.py. When a request was
answered all that was made for it is let go: kept until the next one came, it took its room in the processor's caches
and had left them when it was freed. With 1,000 connections that costs a fifteenth of the throughput.
"""

import asyncio
import time

from starlette.types import Scope
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http.admission import Admission
from service.http.middleware import request_id
from service.http.problems import HEAD_TOO_LARGE, MALFORMED_REQUEST, Problem, render
from service.http.unread import Unread, head
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
    # `self.cycle` is the newest, which may still wait for this one; None when nothing is left of the last.
    _running: RequestResponseCycle | None = None
    _since = 0.0  # when it was last answered, or began to send a head, on the loop's clock
    _unread: Unread | None = None
    _turn: "asyncio.Future[None] | None" = None  # of the request that waits, unread
    _waits = b""  # what has come of it, and behind it
    _came = 0.0  # when it came, on the monotonic clock
    _place: Admission | None = None  # taken for the request that is being read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin a connection."""
        super().connection_made(transport)
        self._unread = self.app_state.get("unread")
        self._since = self.loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is in progress; requests that came behind it are not carried out."""
        self.pipeline.clear()
        if self._unread and self._turn:
            self._unread.queue.leave(self._turn)
            self._turn = None
        if self._running:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        if self.timeout_keep_alive_task:
            self.timeout_keep_alive_task.cancel()

    def data_received(self, data: bytes) -> None:
        """Take what came from the network."""
        if self._refused:
            return
        if self._turn:  # what comes behind a request that waits does so too
            self._waits += data
            self.flow.pause_reading()
        elif self._unread and self._is_whole(data, self._unread):
            self._line_up(data, self._unread)
        else:
            self._read(data)

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

    def on_response_complete(self) -> None:
        """End an answer: let go of all that was made for it, and begin on the request behind it, if there is one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._since = self.loop.time()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
        elif not self.cycle.more_body:
            self.cycle = self.scope = self.headers = self._running = None  # type: ignore[assignment] # as at its start

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

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer alone: `_look` sees by itself what has happened meanwhile."""

    def _look(self) -> None:
        """Close a connection that is idle for long. One timer for all its requests: one for each cost 3 %."""
        left = self._since + self.timeout_keep_alive - self.loop.time()
        if self._turn or (self._running and not self._running.response_complete):
            left = self.timeout_keep_alive
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self._look)
        else:
            self.transport.close()

    def _is_whole(self, data: bytes, unread: Unread) -> bool:
        """Tell whether `data` is one whole read, and not, say, the rest of a body that was refused."""
        return self._running is None and not self._head and len(data) < LARGEST_HEAD and unread.takes(data)

    def _line_up(self, data: bytes, unread: Unread) -> None:
        """Read a whole read when there is a place for it."""
        if unread.queue.take_free():
            self._read(data, unread.queue)
        elif not unread.queue.full:
            self._waits, self._came = data, time.monotonic()
            self._turn = unread.queue.line_up(self._came + unread.queue.wait)
            self._turn.add_done_callback(self._turn_comes)
        elif not self._ending and not self.flow.write_paused and (answer := unread.refuse(data)):
            self._since = self.loop.time()
            self.transport.write(answer)
        else:
            self._read(data)  # to be refused

    def _turn_comes(self, turn: "asyncio.Future[None]") -> None:
        if turn is not self._turn:
            return  # the client has left
        data, self._waits, self._turn = self._waits, b"", None
        if turn.exception() or not self._unread:
            self._read(data)  # to be refused
        else:
            self._read(data, self._unread.queue)

    def _read(self, data: bytes, place: Admission | None = None) -> None:
        """Parse what came, for which a place may have been taken."""
        if not self._head:
            self._since = self.loop.time()
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
        response = render(problem, headers={"X-Request-ID": request_id(b"")})
        self.transport.write(head(response) + b"\r\n" + response.body)
        # Closed at once, with bytes still coming, the client would get a reset in place of the answer.
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


class _Joined:
    """Holds back what is written, to send it in one piece."""

    __slots__ = ("_parts", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:  # to a client that has left nothing is written, and nothing can be
            data, self._parts = b"".join(self._parts), []
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class _Cycle(RequestResponseCycle):
    """One request and its answer, whose head waits for its body: sent one by one they cost a tenth of a request."""

    _start: ASGISendEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # in place of an earlier one, to which no body came: the application failed
            return
        if not self._start:
            await super().send(message)
            return
        start, self._start = self._start, None
        transport = self.transport
        joined = _Joined(transport)
        self.transport = joined  # type: ignore[assignment] # as much of one as is asked for here
        try:
            await super().send(start)
            await super().send(message)
        finally:
            self.transport = transport
            joined.flush()


httptools_impl.RequestResponseCycle = _Cycle  # type: ignore[misc] # uvicorn takes no other from its protocol
