"""The bounded queue before the threads. Everything in it waits on the event loop, where waiting costs nothing.

A request is admitted when a thread, and with it a connection, is free. Its body was read by then, and
the place is given up before its answer is sent: a slow client holds neither.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from service.database.deadlines import DEADLINE, time_left
from service.database.pool import ConnectionBroke
from service.http.bodies import read_json
from service.http.threads import READY, START_BY, Overloaded, Threads
from service.telemetry import metrics
from service.telemetry.record import RECORD

# Gives back the core that the current request was admitted to hash on; called from its thread.
CORE: ContextVar[Callable[[], object]] = ContextVar("CORE", default=lambda: None)


def give_core_back() -> None:
    """Let the next sign-up hash: this request has done so, and may wait for the database from here on."""
    CORE.get()()


class Admission:
    """At most `limit` holders at once; at most `queue_length` wait, first come first served, `queue_wait` seconds."""

    def __init__(self, limit: int, *, name: str, queue_length: int, queue_wait: float) -> None:
        """Make `limit` places, to be counted under `name`. To be used on one event loop only."""
        self.limit = limit
        self.free = limit
        self.length = queue_length
        self._name = name
        self.wait = queue_wait  # seconds
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    async def take(self) -> None:
        """Take a place; `give_back` must follow. Raises Overloaded."""
        if self.free:
            self.free -= 1
        else:
            await self._wait()

    def give_back(self) -> None:
        """Hand the place on."""
        for turn in self._queue:  # straight to the next in line, who may have been cancelled just now
            if not turn.done():
                self._queue.remove(turn)
                turn.set_result(None)
                return
        self.free += 1

    async def _wait(self) -> None:
        if len(self._queue) >= self.length:
            metrics.REFUSED.add(self._name, "full")
            raise Overloaded
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._queue.append(turn)
        timer = loop.call_later(time_left(self.wait), self._expire, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._queue.remove(turn)
            elif turn.exception() is None:
                self.give_back()  # the place came together with the cancellation
            raise
        finally:
            timer.cancel()

    def _expire(self, turn: asyncio.Future[None]) -> None:
        if not turn.done():
            self._queue.remove(turn)
            metrics.REFUSED.add(self._name, "late")
            turn.set_exception(Overloaded())


def places(threads: Threads, *, queue_length: int, queue_wait: float) -> Admission:
    """Return the queue before the threads: of those who wait in it, the first are made ready to begin."""
    ready = min(READY * threads.size, queue_length)
    return Admission(threads.size + ready, name="threads", queue_length=queue_length - ready, queue_wait=queue_wait)


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
            self.app = _Gate(self, queue, hashing, deadline, hashes)

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
                finally:
                    _give_back(request.scope["held"])

            return run

    return AdmittedRoute


class _Gate:
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
        queues: tuple[Admission, ...] = (self._queue,)
        if self._takes_body:
            request = Request(scope, receive)
            if self._hashes(await read_json(request, timeout=self._deadline)):
                queues = (self._hashing, self._queue)
            receive = _again(await request.body())
        DEADLINE.set(time.monotonic() + self._deadline)
        record = RECORD.get()
        record.route = self._name
        scope["held"] = held = []
        try:
            for queue in queues:
                came = time.monotonic()
                START_BY.set(came + time_left(queue.wait))
                await queue.take()
                held.append(queue)
                waited = time.monotonic() - came
                if queue is self._hashing:
                    record.queued_to_hash = waited
                else:
                    record.queued = waited
            if self._hashing in held:
                loop = asyncio.get_running_loop()
                CORE.set(lambda: loop.call_soon_threadsafe(_give_back, held, self._hashing))
            await self._app(scope, receive, send)
        finally:
            _give_back(held)


def _give_back(held: list[Admission], *only: Admission) -> None:
    """Give back every place that is still held, or those of them that `only` names."""
    for queue in [queue for queue in held if queue in only or not only]:
        held.remove(queue)
        queue.give_back()


def _again(body: bytes) -> Receive:
    """Return a channel that brings a body that was read already."""

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    return receive
