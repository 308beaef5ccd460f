"""The bounded queue before the threads. Everything in it waits on the event loop, where waiting costs nothing.

A request is admitted when a thread, and with it a connection, is free. It holds a permit from then until its endpoint
has returned, so a client that sends or reads slowly never holds one.
"""

import asyncio
import time
from collections import OrderedDict
from typing import Self

from service.telemetry import metrics
from service.web.workers import BACKLOG, FULL, LATE, TICK, Overloaded, Workers


class Permit:
    """The right to be at work, until it is released or the `with` block ends. To release it again does nothing."""

    __slots__ = ("_admission",)

    def __init__(self, admission: "Admission") -> None:
        """Be one of the permits of `admission`."""
        self._admission: Admission | None = admission

    def release(self) -> None:
        """Hand the permit on. To be called on the event loop."""
        admission, self._admission = self._admission, None
        if admission:
            admission.release()

    def __enter__(self) -> Self:
        """Begin the block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Release at its end, however it ends."""
        self.release()


Turn = asyncio.Future[Permit]


class Admission:
    """`limit` requests at work, `backlog` ready for them; at most `queue_length` wait, for `queue_wait` seconds.

    First come, first served, but for those that yield: they wait behind all others, and make room for them.
    """

    def __init__(self, limit: int, *, backlog: int, name: str, queue_length: int, queue_wait: float) -> None:
        """Have `limit` + `backlog` permits, counted under `name`. To be used on one event loop only."""
        self.limit = limit
        self.backlog = backlog
        self.free = limit + backlog
        self.length = queue_length
        self.wait = queue_wait  # seconds
        self.name = name
        self.released = 0  # permits, so far
        # Each with the time until which it waits.
        self._queue: OrderedDict[Turn, float] = OrderedDict()
        self._yielding: OrderedDict[Turn, float] = OrderedDict()
        self._expires = False

    @property
    def in_flight(self) -> int:
        """How many hold a permit."""
        return self.limit + self.backlog - self.free

    @property
    def waiting(self) -> int:
        """How many wait for a permit."""
        return len(self._queue) + len(self._yielding)

    @property
    def full(self) -> bool:
        """Whether a request that came now would be refused."""
        return not self.free and self.waiting >= self.length

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
            metrics.REFUSED.add(self.name, str(exc))
            raise

    def enqueue(self, until: float, *, yields: bool = False) -> Turn:
        """Return a future that gets a permit, or fails with Overloaded shortly after `until`.

        A request that does not want it any more must `cancel` it. Such a failure is not counted as a refusal yet: a
        read that waited unparsed may have to be parsed, and is then refused by `acquire`. Raises Overloaded.
        """
        if refusal := self._refusal(until, yields=yields):
            metrics.REFUSED.add(self.name, refusal)
            raise Overloaded(refusal)
        loop = asyncio.get_running_loop()
        turn: Turn = loop.create_future()
        (self._yielding if yields else self._queue)[turn] = until
        if not self._expires:
            self._expires = True
            loop.call_later(TICK, self._expire, loop)
        return turn

    def cancel(self, turn: Turn) -> None:
        """Wait no more; a permit that was given just now goes to the next."""
        if turn.cancelled() or not turn.done():
            self._queue.pop(turn, None)
            self._yielding.pop(turn, None)
            turn.cancel()
            metrics.ABANDONED.add(self.name)
        elif turn.exception() is None:
            turn.result().release()

    def release(self) -> None:
        """Hand a permit on, straight to the next in line. Called by the permit."""
        self.released += 1
        for queue in (self._queue, self._yielding):
            while queue:
                turn, _ = queue.popitem(last=False)
                if not turn.done():  # or it was cancelled just now
                    turn.set_result(Permit(self))
                    return
        self.free += 1

    def _refusal(self, until: float, *, yields: bool) -> str:
        """Return why a request may not wait, or nothing, when it may; one that yields may have made room for it."""
        if time.monotonic() >= until:
            return LATE
        if self.waiting < self.length:
            return ""
        if yields or not self._yielding:
            return FULL
        turn, _ = self._yielding.popitem()
        if not turn.done():
            turn.set_exception(Overloaded(FULL))
        return ""

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse those that have waited too long, the oldest of which are in front: one timer for all of them."""
        now = time.monotonic()
        for queue in (self._queue, self._yielding):
            while queue:
                turn, until = next(iter(queue.items()))
                if until > now and not turn.done():
                    break
                del queue[turn]
                if not turn.done():
                    turn.set_exception(Overloaded(LATE))
        self._expires = bool(self.waiting)
        if self._expires:
            loop.call_later(TICK, self._expire, loop)


def thread_admission(workers: Workers, *, queue_length: int, queue_wait: float) -> Admission:
    """Return the queue before `threads`, the first of which are the backlog of calls that are ready to begin."""
    backlog = min(BACKLOG * workers.size, queue_length)
    return Admission(
        workers.size, backlog=backlog, name="threads", queue_length=queue_length - backlog, queue_wait=queue_wait
    )
