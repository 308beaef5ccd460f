"""The bounded queue before the threads. A request waits in it on the event loop, and holds nothing but its place.

A request is admitted when a thread, and with it a connection, is free. It holds a permit from then until its endpoint
has returned, so a client that sends or reads slowly never holds one.
"""

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Self

from service.telemetry import metrics
from service.web.background import in_background

FULL, LATE = "full", "late"  # why a request is refused

READ_SHARE = 8  # one permit, and one thread, in so many is for reads only

TICK = 0.05  # seconds between two searches for requests that have waited too long


def share_for_writes(count: int) -> int:
    """Return how many of `count` permits or threads writes may hold: a write may wait for long, for a standby."""
    return max(1, count - math.ceil(count / READ_SHARE))


class Overloaded(Exception):
    """The queue is FULL, or the wait in it was too long: LATE. Nothing was done."""


class Permit:
    """The right to be at work, until it is released or its `with` block ends. Releasing it again does nothing."""

    __slots__ = ("_admission", "_is_write")

    def __init__(self, admission: "Admission | None", *, is_write: bool = False) -> None:
        self._admission = admission
        self._is_write = is_write

    def release(self) -> None:
        """Pass the permit on. Call it on the event loop."""
        admission, self._admission = self._admission, None
        if admission:
            admission.release(is_write=self._is_write)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class Turn(asyncio.Future[Permit]):
    """A place in the queue."""

    is_write = False


class Admission:
    """Permits for `limit` requests at work and `backlog` ready for them. At most `queue_length` others wait.

    First come, first served; but those of low priority wait behind all others, and lose their place to them. And reads
    overtake the writes that find no permit left of their share.

    To be used on one event loop only, where `expire` must be called regularly.
    """

    def __init__(self, limit: int, *, backlog: int, name: str, queue_length: int, queue_wait: float) -> None:
        """Count refusals under `name`. A request waits for `queue_wait` seconds at most."""
        self.limit = limit
        self.backlog = backlog
        self.free = limit + backlog
        self.free_for_writes = share_for_writes(self.free)
        self.length = queue_length
        self.wait = queue_wait
        self.name = name
        self.released = 0  # permits, since the start
        # Until when each request waits, in the order in which they came.
        self._line = OrderedDict[Turn, float]()
        self._low_priority = OrderedDict[Turn, float]()
        self._overtaken = OrderedDict[Turn, float]()  # writes whose turn came when their share was held

    @property
    def in_flight(self) -> int:
        """How many hold a permit."""
        return self.limit + self.backlog - self.free

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return len(self._line) + len(self._low_priority) + len(self._overtaken)

    @property
    def full(self) -> bool:
        """Whether a request that came now would be refused."""
        return not self.free and self.waiting - len(self._overtaken) >= self.length

    def refuse(self, reason: str) -> Overloaded:
        """Count a refusal, and return what is to be raised."""
        metrics.REQUESTS_REFUSED.labels(self.name, reason).inc()
        return Overloaded(reason)

    def try_acquire(self, *, is_write: bool = False) -> Permit | None:
        """Return a permit if one is free."""
        if not self.free or (is_write and not self.free_for_writes):
            return None
        self.free -= 1
        self.free_for_writes -= is_write
        return Permit(self, is_write=is_write)

    async def acquire(self, until: float, *, low_priority: bool = False, is_write: bool = False) -> Permit:
        """Return a permit; wait for it until the monotonic time `until`. Raises Overloaded."""
        if permit := self.try_acquire(is_write=is_write):
            return permit
        turn = self.enqueue(until, low_priority=low_priority, is_write=is_write)
        try:
            return await turn
        except asyncio.CancelledError:
            self.cancel(turn)
            raise
        except Overloaded as exc:
            raise self.refuse(str(exc)) from None

    def enqueue(self, until: float, *, low_priority: bool = False, is_write: bool = False) -> Turn:
        """Return a future that gets a permit, or fails with Overloaded shortly after `until`.

        Give it to `cancel` when the permit is no longer wanted. Its failure is not counted: `refuse` does that.
        Raises Overloaded, counted, when the queue is full or `until` is over.
        """
        if time.monotonic() >= until:
            raise self.refuse(LATE)
        waiting = self.waiting if is_write else self.waiting - len(self._overtaken)
        if waiting >= self.length:
            displaced = None if low_priority else _pop(self._low_priority, last=True)
            if not displaced:
                raise self.refuse(FULL)
            displaced.set_exception(Overloaded(FULL))
        turn = Turn(loop=asyncio.get_running_loop())
        turn.is_write = is_write
        line = self._overtaken if self.free else self._low_priority if low_priority else self._line
        line[turn] = until
        return turn

    def cancel(self, turn: Turn) -> None:
        """Leave the queue; a permit that was just granted goes to the next in line."""
        if turn.done() and not turn.cancelled():
            if turn.exception() is None:
                turn.result().release()
            return
        for line in (self._line, self._low_priority, self._overtaken):
            line.pop(turn, None)
        turn.cancel()
        metrics.REQUESTS_ABANDONED.labels(self.name).inc()

    def release(self, *, is_write: bool = False) -> None:
        """Pass a permit on to the next in line. Called by the permit."""
        self.released += 1
        self.free += 1
        self.free_for_writes += is_write
        if turn := self._next():
            self.free -= 1
            self.free_for_writes -= turn.is_write
            turn.set_result(Permit(self, is_write=turn.is_write))

    def _next(self) -> Turn | None:
        """Remove and return the turn that gets a free permit."""
        if self.free_for_writes and (turn := _pop(self._overtaken)):
            return turn
        for line in (self._line, self._low_priority):
            while line:
                turn, until = line.popitem(last=False)
                if turn.done():  # its task was cancelled, and has not run since
                    continue
                if not turn.is_write or self.free_for_writes:
                    return turn
                self._overtaken[turn] = until
        return None

    def expire(self, now: float) -> None:
        """Refuse the requests that have waited too long: the oldest are in front."""
        for line in (self._line, self._low_priority, self._overtaken):
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


def expiring(*expire: Callable[[float], None]) -> AbstractAsyncContextManager[None]:
    """Call each function every TICK with the monotonic time, while the block runs.

    One timer for all requests: one for each costs 3 %.
    """

    async def run() -> None:
        while True:
            await asyncio.sleep(TICK)
            for each in expire:
                each(time.monotonic())

    return in_background(run())
