"""uvicorn's HTTP, bounded in all that a client can make grow, with every error in the shape of the others.

A read that finds no thread free waits here for its turn, as the bytes that came: see unread.py. When a request was
answered all that was made for it is let go: kept until the next one came, it took its room in the processor's caches
and had left them when it was freed. With 1,000 connections that costs a fifteenth of the throughput.
"""

import asyncio
import time
from operator import attrgetter
from typing import ClassVar

from starlette.types import Scope
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.http import clients
from service.http.admission import Admission
from service.http.cycle import Cycle
from service.http.middleware import request_id
from service.http.problems import HEAD_TOO_LARGE, MALFORMED_REQUEST, Problem, render
from service.http.unread import Unread, head
from service.telemetry import metrics

LARGEST_HEAD = 65_536  # bytes: eight times what browsers and proxies send; httptools itself has no limit

# Requests that may wait behind one on its connection: each is 2 KiB, and 250 KiB of them came as 14,000 in one piece.
PIPELINE = 32

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
    _untaken = 0  # bytes of answers, when the client was last looked after
    _stalled: ClassVar[set["Protocol"]] = set()  # those with more of them than uvloop likes to keep

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """Begin a connection."""
        super().connection_made(transport)
        self._unread = self.app_state.get("unread")
        self._since = self.loop.time()
        self._look()
        if len(self.connections) > self.app_state.get("room", clients.MOST):
            self._make_room()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is in progress; requests that came behind it are not carried out."""
        self.pipeline.clear()
        self._stalled.discard(self)
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
        if len(self.pipeline) >= PIPELINE:
            raise ValueError  # those before are answered, and the connection ends
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
            if self.scope is self.cycle.scope:  # or it is that of the next request, which has begun to come
                self.scope = self.headers = None  # type: ignore[assignment] # as at the connection's start
            self.cycle = self._running = None  # type: ignore[assignment] # likewise

    def pause_writing(self) -> None:
        """Make no more answers for a client that does not take them; and cut who does so for longest, if many do."""
        super().pause_writing()
        self._stalled.add(self)
        while sum(each.transport.get_write_buffer_size() for each in self._stalled) > clients.MOST_UNSENT:
            self._evict(min(self._stalled, key=attrgetter("_since")))

    def resume_writing(self) -> None:
        """Go on, as they were taken."""
        super().resume_writing()
        self._stalled.discard(self)
        self._since = self.loop.time()

    def shutdown(self) -> None:
        """Begin to end: what is in progress is answered, and so is one request more."""
        self._ending = True
        self.loop.call_later(LAST_CALL, self._end)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words help nobody
        """Answer bytes that cannot be parsed, for which no application is called, and close."""
        if not self._refused:
            self._refuse(self._wrong)

    def _unset_keepalive_if_required(self) -> None:
        """Leave the timer alone: `_look` sees by itself what has happened meanwhile."""

    def _look(self) -> None:
        """Close a connection that is idle for long. One timer for all its requests: one for each cost 3 %."""
        now = self.loop.time()
        untaken, self._untaken = self._untaken, clients.untaken(self.transport)
        if not self._idle or self._untaken != untaken:  # the service is at work, or the client takes its answer
            self._since = now
        left = self._since + self.timeout_keep_alive - now
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self._look)
        else:
            self._leave()

    @property
    def _idle(self) -> bool:
        """Whether it is the client's turn: to ask, to send the rest of a body, to take an answer."""
        running = self._running
        return not self._turn and (
            not running or running.response_complete or running.more_body or self.flow.write_paused
        )

    def _make_room(self) -> None:
        """Close those that are idle for longest: this one, when nobody else is."""
        idle = [each for each in self.connections if isinstance(each, Protocol) and each._idle]  # noqa: SLF001
        idle.sort(key=attrgetter("_since"))
        for each in idle[: 1 + len(idle) // clients.SHARE]:
            self._evict(each)

    def _evict(self, other: "Protocol") -> None:
        metrics.EVICTED.add()
        self._stalled.discard(other)
        self.connections.discard(other)  # or the next one to come, before it has gone, would find no room either
        other._leave()  # noqa: SLF001

    def _leave(self) -> None:
        """Close; break off when the client has not taken its answer, as close() waits for that without end."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    def _is_whole(self, data: bytes, unread: Unread) -> bool:
        """Tell whether `data` is one whole read, and not, say, the rest of a body that was refused."""
        another = self.headers is not None  # has begun
        return not another and len(data) < LARGEST_HEAD and unread.takes(data)

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
        scope["left"] = self._left
        self._came, self._place = 0.0, None
        super()._start_asgi_task(cycle, app)

    def _left(self) -> bool:
        return not self._running or self._running.disconnected

    def _end(self) -> None:
        if not self._turn:
            super().shutdown()

    def _refuse(self, problem: Problem) -> None:
        self._refused = True
        running = self._running
        if running and not running.response_complete and not running.more_body:
            # It came behind whole requests, which are being carried out: they get their answers, and it gets none.
            if self.pipeline and self.cycle.more_body:
                self.pipeline.popleft()  # it is in the body of the last
            last = self.pipeline[0][0] if self.pipeline else running
            last.keep_alive = False
            return
        if running:  # it is in its body, and it is answered here
            running.disconnected, running.waiting_for_100_continue = True, False
            running.message_event.set()
        metrics.PROBLEMS.add(problem.code)
        response = render(problem, headers={"X-Request-ID": request_id(b"")})
        self.transport.write(head(response) + b"\r\n" + response.body)
        # Closed at once, with bytes still coming, the client would get a reset in place of the answer.
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.loop.call_later(LINGER, self.transport.close)


httptools_impl.RequestResponseCycle = Cycle  # type: ignore[misc] # uvicorn takes no other from its protocol
