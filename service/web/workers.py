"""The worker threads, and the calls that are ready for them.

They are threads of FastAPI's own pool, taken once for as long as the service runs, and each carries out one call
after another. To go to the pool for every request cost 50 µs of a core; this costs 5.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from anyio import to_thread

from service.telemetry import metrics
from service.telemetry.record import RECORD

# Calls that may be ready for each thread, so that one that is done has its next at once. Without them a thread sleeps
# until the event loop has admitted another request. Requests/s at 64 clients with 0, 1, 3 and 7: 1, 1.16, 1.3 and 1.2.
BACKLOG = 3

SPARE = 1  # threads of the pool that are left for what is no endpoint

TICK = 0.05  # seconds between two looks at the calls that wait: how late a refusal may be

Outcome = tuple[Any, BaseException | None]


FULL, LATE = "full", "late"  # why a request is refused


class Overloaded(Exception):
    """The queue is full, or the wait in it was too long: FULL or LATE. Nothing was done."""


class _Call:
    """One call, on its way to a thread and back."""

    __slots__ = ("_function", "_unclaimed", "answer", "arguments", "context", "loop", "ready_at", "start_by")

    def __init__(self, function: Callable[..., Any], arguments: Mapping[str, Any], start_by: float) -> None:
        self._function = function
        self.arguments = arguments
        self.context = copy_context()
        self.start_by = start_by
        self.ready_at = time.monotonic()
        self.loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Outcome] = self.loop.create_future()
        self._unclaimed = [True]

    @property
    def waits(self) -> bool:
        return bool(self._unclaimed)

    def claim(self) -> bool:
        """Tell the first who asks, and nobody else, that what becomes of the call is theirs to say."""
        try:
            return self._unclaimed.pop()  # in one step, whichever threads ask
        except IndexError:
            return False

    def carry_out(self) -> Outcome:
        record = RECORD.get()
        record.queued = (record.queued or 0) + time.monotonic() - self.ready_at
        try:
            return self._function(**self.arguments), None
        except BaseException as exc:  # noqa: BLE001 - it is raised where the call is awaited
            return None, exc

    def settle(self, outcome: Outcome) -> None:
        if not self.answer.done():
            self.answer.set_result(outcome)


class Workers:
    """`size` threads. To be used on one event loop only."""

    def __init__(self, size: int) -> None:
        """Take no thread until `running`."""
        self.size = size
        self.idle = size  # how many have nothing to do; less than none when calls wait
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._waiting: deque[_Call] = deque()  # the same calls, and some that have begun
        self._looks = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the threads while the block runs."""
        to_thread.current_default_thread_limiter().total_tokens = self.size + SPARE
        taken = [asyncio.create_task(to_thread.run_sync(self._work)) for _ in range(self.size)]
        try:
            yield
        finally:
            for _ in taken:
                self._calls.put(None)

    async def run(self, function: Callable[..., Any], arguments: Mapping[str, Any], *, start_by: float) -> Any:  # noqa: ANN401 - its own
        """Call `function` on a thread, in a copy of the current context.

        Raises Overloaded when it has not begun by the monotonic time `start_by`.
        """
        call = _Call(function, arguments, start_by)
        self.idle -= 1
        self._waiting.append(call)
        self._calls.put(call)
        if not self._looks:
            self._looks = True
            call.loop.call_later(TICK, self._look, call.loop)
        try:
            result, exc = await call.answer
        except asyncio.CancelledError:
            call.claim()
            raise
        finally:
            self.idle += 1
            while self._waiting and not self._waiting[0].waits:
                self._waiting.popleft()
        if exc is None:
            return result
        try:
            raise exc
        finally:
            del exc  # or its traceback would hold this frame, which holds it

    def _work(self) -> None:
        while call := self._calls.get():
            if call.claim():
                call.loop.call_soon_threadsafe(call.settle, call.context.run(call.carry_out))
            del call  # or it would live until the next one comes

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse the calls that have waited too long, the oldest of which are in front."""
        now = time.monotonic()
        while self._waiting and (now > self._waiting[0].start_by or not self._waiting[0].waits):
            call = self._waiting.popleft()
            if call.claim():
                metrics.REFUSED.add("threads", LATE)
                call.settle((None, Overloaded(LATE)))
        self._looks = bool(self._waiting)
        if self._looks:
            loop.call_later(TICK, self._look, loop)
