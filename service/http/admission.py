"""The bounded queue before the threads. Everything in it waits on the event loop, where waiting costs nothing.

A request is admitted when a thread, and with it a connection, is free. It gives its place up before its answer is
sent (middleware.py), and its body was read before it came: a slow client holds neither.
"""

import asyncio
import time
from collections import OrderedDict

from service.http.threads import READY, TICK, Overloaded, Threads
from service.telemetry import metrics


class Admission:
    """`limit` at work, `ready` at hand; at most `queue_length` wait, first come first served, `queue_wait` seconds."""

    def __init__(self, limit: int, *, ready: int, name: str, queue_length: int, queue_wait: float) -> None:
        """Make `limit` + `ready` places, to be counted under `name`. To be used on one event loop only."""
        self.limit = limit
        self.ready = ready
        self.free = limit + ready
        self.length = queue_length
        self.wait = queue_wait  # seconds
        self.name = name
        self._queue: OrderedDict[asyncio.Future[None], float] = OrderedDict()  # and when each has waited too long
        self._looks = False

    @property
    def inside(self) -> int:
        """How many hold a place."""
        return self.limit + self.ready - self.free

    @property
    def waiting(self) -> int:
        """How many wait for a place."""
        return len(self._queue)

    @property
    def full(self) -> bool:
        """Whether nobody may wait any more."""
        return len(self._queue) >= self.length

    def take_free(self) -> bool:
        """Take a place if there is one, and tell; `give_back` must follow."""
        if not self.free:
            return False
        self.free -= 1
        return True

    async def take(self, until: float) -> None:
        """Take a place, and wait for one if need be; `give_back` must follow. Raises Overloaded."""
        if self.take_free():
            return
        turn = self.line_up(until)
        try:
            await turn
        except asyncio.CancelledError:
            self.leave(turn)
            raise
        except Overloaded:
            metrics.REFUSED.add(self.name, "late")
            raise

    def line_up(self, until: float) -> "asyncio.Future[None]":
        """Return what is done when a place was given, or fails with Overloaded a little after the time `until`.

        Who does not want the place any more must say so with `leave`. One that fails is not counted as refused yet:
        a request that waited unread is read, and refused by `take`. Raises Overloaded.
        """
        loop = asyncio.get_running_loop()
        late = time.monotonic() >= until
        if late or self.full:
            metrics.REFUSED.add(self.name, "late" if late else "full")
            raise Overloaded
        turn: asyncio.Future[None] = loop.create_future()
        self._queue[turn] = until
        if not self._looks:
            self._looks = True
            loop.call_later(TICK, self._look, loop)
        return turn

    def leave(self, turn: "asyncio.Future[None]") -> None:
        """Wait no more; a place that was given just now goes to the next."""
        if turn.cancelled() or not turn.done():
            self._queue.pop(turn, None)
            turn.cancel()
            metrics.ABANDONED.add(self.name)
        elif turn.exception() is None:
            self.give_back()

    def give_back(self) -> None:
        """Hand the place on, straight to the next in line."""
        while self._queue:
            turn, _ = self._queue.popitem(last=False)
            if not turn.done():  # or it was cancelled just now
                turn.set_result(None)
                return
        self.free += 1

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Refuse those who have waited too long, the oldest of whom are in front: one timer for all of them."""
        now = time.monotonic()
        while self._queue:
            turn, until = next(iter(self._queue.items()))
            if until > now and not turn.done():
                break
            del self._queue[turn]
            if not turn.done():
                turn.set_exception(Overloaded())
        self._looks = bool(self._queue)
        if self._looks:
            loop.call_later(TICK, self._look, loop)


def places(threads: Threads, *, queue_length: int, queue_wait: float) -> Admission:
    """Return the queue before the threads: of those who wait in it, the first are made ready to begin."""
    ready = min(READY * threads.size, queue_length)
    return Admission(
        threads.size, ready=ready, name="threads", queue_length=queue_length - ready, queue_wait=queue_wait
    )


def give_back(held: list[Admission], *only: Admission) -> None:
    """Give back every place that is still held, or those of them that `only` names."""
    for queue in [queue for queue in held if queue in only or not only]:
        held.remove(queue)
        queue.give_back()
