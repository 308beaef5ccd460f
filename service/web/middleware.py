"""What happens to every request, whatever its path, in two plain ASGI middlewares.

The outermost names the request, accepts a trailing slash, lets GET answer HEAD, limits the body, and counts and logs
the outcome. The innermost turns exceptions into responses.
"""

import asyncio
import logging
import random
import re
import time
from http import HTTPStatus

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.routing import Match, Route, Router
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.telemetry import log, metrics
from service.telemetry.record import RECORD, Record
from service.web.arrival import Arrival
from service.web.bodies import BodyTooLarge
from service.web.health import Readiness
from service.web.problems import (
    MALFORMED_REQUEST,
    STOPPING,
    Problem,
    ProblemTable,
    invalid_fields,
    problem_of,
    render,
)
from service.web.responses import FailureWithHeaders

logger = logging.getLogger(__name__)

WITHOUT_BODY = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)

# An X-Request-ID that is used: enough for a UUID or a trace id, nothing that could forge a log line.
SANE_ID = re.compile(rb"[A-Za-z0-9._:+/=@-]{1,128}")


class RequestMiddleware:
    """Wraps the whole application."""

    def __init__(self, app: ASGIApp, *, max_body_size: int, readiness: Readiness) -> None:
        """Refuse a body of more than `max_body_size` bytes. While `readiness` is draining, close connections."""
        self.app = app
        self.max_body_size = max_body_size
        self.readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = _Exchange(scope, receive, send, self)
        record = exchange.record
        RECORD.set(record)
        try:
            if exchange.ambiguous:
                await render(MALFORMED_REQUEST)(scope, exchange.receive, exchange.send)
            else:
                await self.app(_routable(scope), exchange.receive, exchange.send)
        finally:
            exchange.release_permit()
            if rejected := exchange.arrival.rejected:
                record.status, record.code = rejected.status, rejected.code
            finish_request(record)


class ProblemMiddleware:
    """Innermost: turns exceptions into responses, by one table. Inside CORS, so that a web page can read them."""

    def __init__(self, router: Router, *, table: ProblemTable) -> None:
        self.router = router
        self.table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self.router(scope, receive, send)
            return
        sender = _Sender(send)
        try:
            await self.router(scope, receive, sender)
        except ClientDisconnect:
            pass  # nobody reads a response
        except asyncio.CancelledError:  # by the server, when the time for a graceful shutdown is over
            if not sender.started:
                await render(STOPPING)(scope, receive, send)
            raise
        except Exception as exc:
            problem = problem_of(self.table, exc)
            response = self._response(scope, exc, problem)
            if sender.started or response.status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
                logger.exception("unhandled %s", type(exc).__name__)
            if not sender.started:
                if problem.least_duration:
                    await asyncio.sleep(RECORD.get().queued_at + problem.least_duration - time.monotonic())
                await response(scope, receive, send)

    def _response(self, scope: Scope, exc: Exception, problem: Problem) -> Response:
        if isinstance(exc, HTTPException) and exc.status_code in WITHOUT_BODY:
            return Response(status_code=exc.status_code, headers=exc.headers)
        if isinstance(exc, RequestValidationError):
            return render(problem, errors=invalid_fields(exc))
        if problem.status == HTTPStatus.METHOD_NOT_ALLOWED:
            return render(problem, headers={"Allow": ", ".join(self._methods(scope))})
        return render(problem, headers=exc.headers if isinstance(exc, FailureWithHeaders) else None)

    def _methods(self, scope: Scope) -> list[str]:
        """Return every method of the request's path, which may have several routes."""
        methods = {
            method
            for route in self.router.routes
            if isinstance(route, Route) and route.matches(scope)[0] is not Match.NONE
            for method in route.methods or ()
        }
        return sorted(methods | {"HEAD"} if "GET" in methods else methods)


class _Sender:
    """Sends the start of a response together with its body: a body that fails at once is replaced by its problem."""

    __slots__ = ("_send", "_start", "started")

    def __init__(self, send: Send) -> None:
        self.started = False
        self._send = send
        self._start: Message | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start = message
            return
        if self._start and not self.started:
            await self._send(self._start)
        self.started = True
        await self._send(message)


class _Exchange:
    """One request and its response."""

    __slots__ = ("_declared", "_middleware", "_receive", "_received", "_send", "ambiguous", "arrival", "record")

    def __init__(self, scope: Scope, receive: Receive, send: Send, middleware: RequestMiddleware) -> None:
        headers = dict(scope["headers"])
        self.arrival: Arrival = scope.setdefault("arrival", Arrival())
        self.record = Record(
            request_id(headers.get(b"x-request-id", b"")),
            scope["method"],
            scope["raw_path"].decode("ascii", "backslashreplace"),  # still encoded: it cannot forge a log line
            self.arrival.received_at,
        )
        self._declared = int(headers.get(b"content-length", 0))
        # After a head with Upgrade, as curl --http2 sends it, httptools takes the body for the next request when it
        # comes in a packet of its own: one that a stranger may have written. extras/http/ drops the header field.
        self.ambiguous = b"upgrade" in headers and (self._declared > 0 or b"transfer-encoding" in headers)
        self._received = 0
        self._middleware = middleware
        self._receive = receive
        self._send = send

    def release_permit(self) -> None:
        """Release the permit that the server acquired, unless the endpoint has done so."""
        if permit := self.arrival.permit:
            permit.release()

    async def receive(self) -> Message:
        if self._declared > self._middleware.max_body_size:
            raise BodyTooLarge  # before any of it is read
        message = await self._receive()
        self._received += len(message.get("body", b""))
        if self._received > self._middleware.max_body_size:
            raise BodyTooLarge  # it came in chunks, undeclared
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.release_permit()  # a client that reads slowly holds nothing
            self.record.status = message["status"]
            message["headers"] = [*message["headers"], (b"x-request-id", self.record.request_id.encode())]
            if self._middleware.readiness.failed == "draining":  # the client connects again, to another instance
                message["headers"].append((b"connection", b"close"))
        await self._send(message)


def finish_request(record: Record) -> None:
    """End, count and log a request. Call it on the event loop."""
    record.end()
    metrics.count_request(record)
    log.log_request(record)


def request_id(given: bytes) -> str:
    """Return the client's id for a request if it is sane, or else a new one."""
    return given.decode() if SANE_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"


def _routable(scope: Scope) -> Scope:
    """Return `scope` as the router knows it: no slash at the end, HEAD as the GET that it repeats.

    The server drops the body of an answer to HEAD.
    """
    path: str = scope["path"]
    if scope["method"] != "HEAD" and not path.endswith(("/", "\n")):
        return scope  # as nearly always
    if len(path) > 1 and path.endswith("/"):
        path = path[:-1]
    if path.endswith("\n"):
        path += "\n"  # or Starlette's `$` would forgive it
    return {**scope, "path": path, "method": "GET" if scope["method"] == "HEAD" else scope["method"]}
