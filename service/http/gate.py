"""What stands before an endpoint: its request's body is read, its place taken, its deadline set."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import partial
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.database.deadlines import DEADLINE
from service.database.pool import ConnectionBroke
from service.http.admission import Admission, give_back
from service.http.bodies import read_json
from service.http.threads import START_BY, Threads
from service.telemetry import metrics
from service.telemetry.record import RECORD

# Gives back the core that the current request was admitted to hash on; called from its thread.
CORE: ContextVar[Callable[[], object]] = ContextVar("CORE", default=lambda: None)


def give_core_back() -> None:
    """Let the next sign-up hash: this request has done so, and may wait for the database from here on."""
    CORE.get()()


def admitted(
    threads: Threads, queue: Admission, hashing: Admission, *, deadline: float, hashes: Callable[[Any], bool]
) -> type[APIRoute]:
    """Return the class of the routes whose endpoints run on a thread.

    A request whose body `hashes` says will be hashed first waits for a core, so that sign-ups queue among
    themselves and never keep a thread from a read. The answer is due `deadline` seconds after the body came.
    A read whose connection breaks is tried once more, by the same deadline.
    """

    class AdmittedRoute(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401
            super().__init__(path, threads.endpoint(endpoint), **kwargs)
            self.app = Gate(self, queue, hashing, deadline, hashes)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            run_endpoint = super().get_route_handler()

            async def run(request: Request) -> Response:
                try:
                    return await run_endpoint(request)
                except ConnectionBroke:
                    if request.method != "GET":
                        raise  # a write may have been carried out
                    metrics.RETRIES.add()
                    START_BY.set(DEADLINE.get())
                    return await run_endpoint(request)

            return run

    return AdmittedRoute


class Gate:
    """Stands before a route, and before anything of FastAPI's is made for the request.

    What waits is small, then: with 250 in the queue a request cost a tenth more when FastAPI had begun on it, as
    all that had left the processor's caches when its turn came.
    """

    def __init__(
        self,
        route: APIRoute,
        queue: Admission,
        hashing: Admission,
        deadline: float,
        hashes: Callable[[Any], bool],
    ) -> None:
        self._app = route.app
        self._name = route.path_format
        self._takes_body = route.body_field is not None
        self._queue = queue
        self._hashing = hashing
        self._deadline = deadline
        self._hashes = hashes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through when its turn comes. Raises Overloaded, ClientDisconnect."""
        queues: tuple[Admission, ...] = (self._queue,)
        came = RECORD.get().started
        if self._takes_body:
            request = Request(scope, receive)
            if self._hashes(await read_json(request, timeout=self._deadline)):
                queues = (self._hashing, self._queue)
            receive = _again(await request.body())
            came = time.monotonic()
        due = came + self._deadline
        DEADLINE.set(due)
        record = RECORD.get()
        record.route = self._name
        held, left = scope["held"], scope.pop("left", _stays)
        for queue in queues:
            until = min(came + queue.wait, due)
            START_BY.set(until)
            if queue not in held:  # protocol.py may have taken it
                await queue.take(until)
                held.append(queue)
                if left():
                    metrics.ABANDONED.add(queue.name)
                    raise ClientDisconnect
            now = time.monotonic()
            if queue is self._hashing:
                record.queued_to_hash = now - came
                later = asyncio.get_running_loop().call_soon_threadsafe
                CORE.set(partial(later, give_back, held, self._hashing))
            else:
                record.queued = now - came
            came = now
        await self._app(scope, receive, send)


def _stays() -> bool:
    return False  # as far as a server other than protocol.py tells


def _again(body: bytes) -> Receive:
    """Return a channel that brings a body that was read already."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
