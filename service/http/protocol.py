"""uvicorn's HTTP, bounded, with the answer to what is no HTTP in the shape of every other error."""

from http import HTTPStatus
from uuid import uuid4

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

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

    def connection_lost(self, exc: Exception | None) -> None:
        """End what is in progress; requests that came behind it are not carried out."""
        self.pipeline.clear()
        if self._running:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take what came from the network."""
        if self._refused:
            return
        self._head += len(data)
        super().data_received(data)
        if self._head > LARGEST_HEAD and not self._refused:
            self._refuse(HEAD_TOO_LARGE)

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
        self.loop.call_later(LAST_CALL, super().shutdown)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words help nobody
        """Answer bytes that cannot be parsed, for which no application is called, and close."""
        if self.cycle and not self.cycle.response_complete and not self.cycle.more_body:
            # They came behind a whole request, which is being carried out: it gets its answer, they get none.
            self.cycle.keep_alive = False
            self.flow.pause_reading()
            return
        self._refuse(self._wrong)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

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
