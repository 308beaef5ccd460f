"""Connections that must wait before their next request is read: reading them all would take the GIL from the threads.

An answer that takes no thread costs the client nothing: 64 clients in a loop on /livez, or 1,000 that send again at
once after a 503, left the threads a tenth of their requests. A client that waits here costs nothing either: its next
request stays in the kernel. The event loop hands the GIL to a thread only after 5 ms, so what counts is how often the
loop has work at all. So these answers get a share of what the threads do, whatever the machine can do in all.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

TICK = 0.01  # seconds between two looks at those that wait
MOST_DEBT = 1000.0  # small answers
BURST = 32  # connections that resume in one tick when there is room: more would keep the loop for long

Resume = Callable[[], object]


class LoopLag:
    """How late the event loop is: how long what becomes ready has to wait before it runs."""

    seconds = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure again and again, for as long as the loop runs."""
        due = loop.time() + 2 * TICK

        def measure() -> None:
            self.seconds = loop.time() - due
            self.start(loop)

        loop.call_at(due, measure)


@dataclass(eq=False)
class Backoff:
    """A line of connections: the first resumes when its share allows it, or as soon as there is room.

    To be used on one event loop only.
    """

    rate: float  # connections that resume in a second, at least
    share: float  # and for each one more of `served()`
    served: Callable[[], int]
    has_room: Callable[[], bool]  # whether all may resume at once
    longest: float  # seconds that a connection waits at the most: a proxy may share it among many people
    pause: float = 0.0  # seconds: when given, only who comes again within them waits, and until they are over

    # From when on each may resume, and what its last answer cost.
    _waiting: OrderedDict[Resume, tuple[float, float]] = field(default_factory=OrderedDict, init=False)
    _credit: float = field(default=0.0, init=False)  # how much may resume; less than nothing when more did
    _paid_at: float = field(default=0.0, init=False)
    _paid_for: int = field(default=0, init=False)
    _ticks: bool = field(default=False, init=False)

    @property
    def in_debt(self) -> bool:
        """Whether more was answered than there is credit for."""
        self._earn()
        return bool(self._waiting) or self._credit < 0

    def enter(self, resume: Resume, *, answered_at: float, cost: float = 1.0) -> bool:
        """Call `resume()` later, and return True; return False when there is nothing to wait for.

        `answered_at` is the time, on the monotonic clock, of the answer that cost so much, where 1 is a small one.
        What comes after waits longer by that.
        """
        not_before = answered_at + self.pause
        if (self.pause and time.monotonic() >= not_before) or (not self._waiting and self.has_room()):
            return False
        self._earn()
        self._waiting[resume] = not_before, cost
        if not self._ticks:
            self._ticks = True
            asyncio.get_running_loop().call_later(TICK, self._tick)
        return True

    def cancel(self, resume: Resume) -> None:
        """Forget a connection that has ended, but not what it cost: its client may be back already."""
        if resume in self._waiting:
            self.charge(self._waiting.pop(resume)[1])

    def charge(self, cost: float) -> None:
        """Have all others wait for what a connection cost that has ended."""
        self._earn()
        self._credit = max(self._credit - cost, -MOST_DEBT)

    def _earn(self) -> None:
        now, served = time.monotonic(), self.served()
        self._credit += self.rate * (now - self._paid_at) + self.share * (served - self._paid_for)
        self._credit = min(self._credit, BURST if self._waiting else 0.0)
        self._paid_at, self._paid_for = now, served

    def _tick(self) -> None:
        self._earn()
        try:
            self._resume_some(time.monotonic())
        finally:
            self._ticks = bool(self._waiting)
            if self._ticks:
                asyncio.get_running_loop().call_later(TICK, self._tick)

    def _resume_some(self, now: float) -> None:
        early = BURST
        while self._waiting:
            resume, (not_before, cost) = next(iter(self._waiting.items()))
            if now < not_before or (self._credit <= 0 and now < not_before + self.longest):
                if not early or not self.has_room():
                    break
                early -= 1
            else:
                self._credit -= cost
            del self._waiting[resume]
            resume()
