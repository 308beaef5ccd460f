"""The bounded queue before the threads. A request waits in it on the event loop, and holds nothing but its place.

A request is admitted when a thread, and with it a connection, is free. It holds a permit from then until its endpoint
has returned, so a client that sends or reads slowly never holds one.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Self

from service.telemetry import metrics

FULL, LATE = "full", "late"  # why a request is refused

TICK = 0.05  # seconds between two searches for requests that have waited too long


class Overloaded(Exception):
    """The queue is FULL, or the wait in it was too long: LATE. Nothing was done."""


class Permit:
    """The right to be at work, until it is released or its `with` block ends. Releasing it again does nothing."""

    __slots__ = ("_admission",)

    def __init__(self, admission: "Admission | None") -> None:
        self._admission = admission

    def release(self) -> None:
        """Pass the permit on. Call it on the event loop."""
        admission, self._admission = self._admission, None
        if admission:
            admission.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


Turn = asyncio.Future[Permit]


class Admission:
    """Permits for `limit` requests at work and `backlog` ready for them. At most `queue_length` others wait.

    First come, first served; but those of low priority wait behind all others, and lose their place to them. To be
    used on one event loop only, where `expire` must be called regularly.
    """

    def __init__(self, limit: int, *, backlog: int, name: str, queue_length: int, queue_wait: float) -> None:
        """Count refusals under `name`. A request waits for `queue_wait` seconds at most."""
        self.limit = limit
        self.backlog = backlog
        self.free = limit + backlog
        self.length = queue_length
        self.wait = queue_wait
        self.name = name
        self.released = 0  # permits, since the start
        # Until when each request waits, in the order in which they came.
        self._line = OrderedDict[Turn, float]()
        self._low_priority = OrderedDict[Turn, float]()

    @property
    def in_flight(self) -> int:
        """How many hold a permit."""
        return self.limit + self.backlog - self.free

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return len(self._line) + len(self._low_priority)

    @property
    def full(self) -> bool:
        """Whether a request that came now would be refused."""
        return not self.free and self.waiting >= self.length

    def refuse(self, reason: str) -> Overloaded:
        """Count a refusal, and return what is to be raised."""
        metrics.REQUESTS_REFUSED.labels(self.name, reason).inc()
        return Overloaded(reason)

    def try_acquire(self) -> Permit | None:
        """Return a permit if one is free."""
        if not self.free:
            return None
        self.free -= 1
        return Permit(self)

    async def acquire(self, until: float, *, low_priority: bool = False) -> Permit:
        """Return a permit; wait for it until the monotonic time `until`. Raises Overloaded."""
        if permit := self.try_acquire():
            return permit
        turn = self.enqueue(until, low_priority=low_priority)
        try:
            return await turn
        except asyncio.CancelledError:
            self.cancel(turn)
            raise
        except Overloaded as exc:
            raise self.refuse(str(exc)) from None

    def enqueue(self, until: float, *, low_priority: bool = False) -> Turn:
        """Return a future that gets a permit, or fails with Overloaded shortly after `until`.

        Give it to `cancel` when the permit is no longer wanted. Its failure is not counted: `refuse` does that.
        Raises Overloaded, counted, when the queue is full or `until` is over.
        """
        if time.monotonic() >= until:
            raise self.refuse(LATE)
        if self.waiting >= self.length:
            displaced = None if low_priority else _pop(self._low_priority, last=True)
            if not displaced:
                raise self.refuse(FULL)
            displaced.set_exception(Overloaded(FULL))
        turn: Turn = asyncio.get_running_loop().create_future()
        (self._low_priority if low_priority else self._line)[turn] = until
        return turn

    def cancel(self, turn: Turn) -> None:
        """Leave the queue; a permit that was just granted goes to the next in line."""
        if turn.done() and not turn.cancelled():
            if turn.exception() is None:
                turn.result().release()
            return
        self._line.pop(turn, None)
        self._low_priority.pop(turn, None)
        turn.cancel()
        metrics.REQUESTS_ABANDONED.labels(self.name).inc()

    def release(self) -> None:
        """Pass a permit on to the next in line. Called by the permit."""
        self.released += 1
        if turn := _pop(self._line) or _pop(self._low_priority):
            turn.set_result(Permit(self))
        else:
            self.free += 1

    def expire(self, now: float) -> None:
        """Refuse the requests that have waited too long: the oldest are in front."""
        for line in (self._line, self._low_priority):
            while line and next(iter(line.values())) <= now:
                turn, _ = line.popitem(last=False)
                if not turn.done():
                    turn.set_exception(Overloaded(LATE))


def _pop(line: OrderedDict[Turn, float], *, last: bool = False) -> Turn | None:
    """Remove and return the first or last in line that still waits."""
    while line:
        turn, _ = line.popitem(last=last)
        if not turn.done():  # its task was cancelled, and has not run since
            return turn
    return None


@asynccontextmanager
async def expiring(*expire: Callable[[float], None]) -> AsyncIterator[None]:
    """Call each function every TICK with the monotonic time, while the block runs.

    One timer for all requests: one for each costs 3 %.
    """

    async def run() -> None:
        while True:
            await asyncio.sleep(TICK)
            for each in expire:
                each(time.monotonic())

    timer = asyncio.create_task(run())
    try:
        yield
    finally:
        timer.cancel()
