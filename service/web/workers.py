"""The worker threads, and the calls that are ready for them.

They are threads of AnyIO's pool, where FastAPI runs every plain `def`. Each is taken once and carries out call after
call: a call through the pool costs 50 µs of a core, one through this queue 5.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from contextvars import copy_context
from queue import SimpleQueue
from typing import Any

from anyio import to_thread

from service.telemetry import metrics
from service.telemetry.record import RECORD
from service.web.admission import LATE, Overloaded, share_for_writes

# Calls ready for each thread, so that it need not wait for the event loop to admit the next. Requests a second at 64
# clients with 0, 1, 3 and 7 of them: 1, 1.16, 1.3 and 1.2.
BACKLOG = 3

SPARE = 1  # threads of AnyIO's pool that are left for what is no endpoint


class Call:
    """A function on its way to a thread and back."""

    __slots__ = ("_arguments", "_context", "_function", "_loop", "is_write", "result", "start_by")

    def __init__(
        self, function: Callable[..., Any], arguments: Mapping[str, Any], start_by: float, *, is_write: bool
    ) -> None:
        self._function = function
        self._arguments = arguments
        self.is_write = is_write
        self._context = copy_context()
        self._loop = asyncio.get_running_loop()
        self.start_by = start_by
        self.result: asyncio.Future[Any] = self._loop.create_future()

    def carry_out(self) -> None:
        """Call the function on this thread, and resolve the result on the event loop."""
        try:
            outcome = self._context.run(self._call)
        except StopIteration as exc:  # a future takes any other
            self._loop.call_soon_threadsafe(self.fail, RuntimeError(f"the endpoint raised {exc!r}"))
        except BaseException as exc:  # noqa: BLE001 - raised where the result is awaited
            self._loop.call_soon_threadsafe(self.fail, exc)
        else:
            self._loop.call_soon_threadsafe(self._succeed, outcome)

    def fail(self, exc: BaseException) -> None:
        """Resolve the result, unless nobody awaits it any longer."""
        if not self.result.done():
            self.result.set_exception(exc)

    def _succeed(self, outcome: Any) -> None:  # noqa: ANN401 - the function's own
        if not self.result.done():
            self.result.set_result(outcome)

    def _call(self) -> Any:  # noqa: ANN401
        record = RECORD.get()
        record.queued = time.monotonic() - record.queued_at
        return self._function(**self._arguments)


class Workers:
    """`size` threads. To be used on one event loop only, where `expire` must be called regularly."""

    def __init__(self, size: int) -> None:
        """Take no thread until `running`."""
        self.size = size
        self.in_flight = 0  # calls that are ready or run
        self._ready: deque[Call] = deque()  # whoever removes a call, a thread or the event loop, decides its outcome
        self._overtaken: deque[Call] = deque()  # writes whose turn came when others had their share
        self._free_for_writes = threading.Semaphore(share_for_writes(size))
        self._wake_ups: SimpleQueue[bool] = SimpleQueue()  # one for each call; False ends a thread

    @property
    def idle(self) -> int:
        """How many threads have nothing to do."""
        return max(0, self.size - self.in_flight)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Have the threads while the block runs. Raises RuntimeError when the system refuses one."""
        to_thread.current_default_thread_limiter().total_tokens = self.size + SPARE
        threads: list[asyncio.Task[None]] = []
        try:
            for _ in range(self.size):
                started = asyncio.get_running_loop().create_future()
                thread = asyncio.create_task(to_thread.run_sync(self._work, started))
                await asyncio.wait([started, thread], return_when=asyncio.FIRST_COMPLETED)
                if thread.done():
                    thread.result()  # raises
                threads.append(thread)
            yield
        finally:
            for _ in threads:
                self._wake_ups.put(False)  # noqa: FBT003 - see above

    async def run(
        self, function: Callable[..., Any], arguments: Mapping[str, Any], *, start_by: float, is_write: bool = False
    ) -> Any:  # noqa: ANN401 - its own
        """Call `function` on a thread, in a copy of the current context.

        Raises Overloaded when it has not begun by the monotonic time `start_by`.
        """
        call = Call(function, arguments, start_by, is_write=is_write)
        self.in_flight += 1
        self._ready.append(call)
        self._wake_ups.put(True)  # noqa: FBT003 - see above
        try:
            return await call.result
        except asyncio.CancelledError:
            self._remove(call)
            raise
        finally:
            self.in_flight -= 1
            del call  # an exception's traceback holds this frame, which would hold the exception

    def expire(self, now: float) -> None:
        """Refuse the calls that should have begun; the oldest are in front."""
        for call in (*self._ready, *self._overtaken):
            if call.start_by < now and self._remove(call):
                metrics.REQUESTS_REFUSED.labels("threads", LATE).inc()
                call.fail(Overloaded(LATE))

    def _remove(self, call: Call) -> bool:
        """Return whether the call was still ready: no thread will begin it."""
        for calls in (self._ready, self._overtaken):
            with suppress(ValueError):
                calls.remove(call)  # atomic
                return True
        return False

    def _work(self, started: asyncio.Future[None]) -> None:
        started.get_loop().call_soon_threadsafe(started.set_result, None)
        while self._wake_ups.get():
            with suppress(IndexError):  # the call was removed
                call = self._ready.popleft()
                if call.is_write:
                    self._overtaken.append(call)
                    self._write()
                else:
                    call.carry_out()

    def _write(self) -> None:
        """Carry out writes in their order, while they have not all of their share of the threads."""
        while self._overtaken and self._free_for_writes.acquire(blocking=False):
            try:
                with suppress(IndexError):  # it was removed; look again, for one that was added meanwhile
                    self._overtaken.popleft().carry_out()
            finally:
                self._free_for_writes.release()
