"""The bounded queue before the threads. A request waits in it on the event loop, and holds nothing but its place.

A request is admitted when a thread, and with it a connection, is free. It holds a permit from then until its endpoint
has returned, so a client that sends or reads slowly never holds one.
"""

import asyncio
import time
from functools import partial
from typing import Self

from service.telemetry import metrics
from service.web.waiting_line import WaitingLine

FULL, LATE = "full", "late"  # why a request is refused


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

    First come, first served; but those that yield wait behind all others, and lose their place to them. To be used on
    one event loop only, where `expire` must be called regularly.
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
        self._line = WaitingLine[Permit]()
        self._yielding = WaitingLine[Permit]()

    @property
    def in_flight(self) -> int:
        """How many hold a permit."""
        return self.limit + self.backlog - self.free

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return len(self._line) + len(self._yielding)

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

    async def acquire(self, until: float, *, yields: bool = False) -> Permit:
        """Return a permit; wait for it until the monotonic time `until`. Raises Overloaded."""
        if permit := self.try_acquire():
            return permit
        turn = self.enqueue(until, yields=yields)
        try:
            return await turn
        except asyncio.CancelledError:
            self.cancel(turn)
            raise
        except Overloaded as exc:
            raise self.refuse(str(exc)) from None

    def enqueue(self, until: float, *, yields: bool = False) -> Turn:
        """Return a future that gets a permit, or fails with Overloaded shortly after `until`.

        Give it to `cancel` when the permit is no longer wanted. Its failure is not counted: `refuse` does that.
        Raises Overloaded, counted, when the queue is full or `until` is over.
        """
        if time.monotonic() >= until:
            raise self.refuse(LATE)
        if self.waiting >= self.length and (yields or not self._yielding.refuse_last(partial(Overloaded, FULL))):
            raise self.refuse(FULL)
        return (self._yielding if yields else self._line).join(until)

    def cancel(self, turn: Turn) -> None:
        """Leave the queue; a permit that was just granted goes to the next in line."""
        if turn.done() and not turn.cancelled():
            if turn.exception() is None:
                turn.result().release()
            return
        self._line.leave(turn)
        self._yielding.leave(turn)
        turn.cancel()
        metrics.REQUESTS_ABANDONED.labels(self.name).inc()

    def release(self) -> None:
        """Pass a permit on to the next in line. Called by the permit."""
        self.released += 1
        permit = Permit(self)
        if not self._line.serve(permit) and not self._yielding.serve(permit):
            self.free += 1

    def expire(self, now: float) -> None:
        """Refuse the requests that have waited too long."""
        self._line.refuse_late(now, partial(Overloaded, LATE))
        self._yielding.refuse_late(now, partial(Overloaded, LATE))
