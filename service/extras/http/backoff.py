"""Connections that must wait before their next request is read: reading them all would take the GIL from the threads.

A response that takes no thread costs the client nothing: 64 clients in a loop on /livez, or 1,000 that send again at
once after a 503, left the threads a tenth of their requests. A client that waits here costs nothing either: its next
request stays in the kernel. The event loop hands the GIL to a thread only after 5 ms, so what counts is how often the
loop has work at all. So these responses get a fixed share of what the threads serve, however fast the machine is.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

TICK = 0.01  # seconds between two refills
MAX_DEBT = 1000.0  # tokens
BURST = 32  # connections that resume in one tick when there is room: more would keep the loop for long

Resume = Callable[[], object]


class LoopLag:
    """How late the event loop is: how long what becomes ready has to wait before it runs."""

    seconds = 0.0

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Measure for as long as the loop runs."""
        due = loop.time() + 2 * TICK

        def measure() -> None:
            self.seconds = loop.time() - due
            self.start(loop)

        loop.call_at(due, measure)


@dataclass(eq=False)
class Backoff:
    """A token bucket with a queue of connections: the first resumes when there are tokens, or as soon as there is room.

    A small response costs one token. By default no connection waits. To be used on one event loop only.
    """

    rate: float = 0.0  # tokens per second
    share: float = 0.0  # tokens for each request that `served` counts
    served: Callable[[], int] = lambda: 0
    has_room: Callable[[], bool] = lambda: True  # whether all may resume at once
    longest: float = 0.0  # seconds that a connection waits at the most: a proxy may share it among many people
    pause: float = 0.0  # seconds: when given, only who asks again within them waits, until they are over

    # When each may resume at the earliest, and what its last response cost.
    _waiting: OrderedDict[Resume, tuple[float, float]] = field(default_factory=OrderedDict, init=False)
    _tokens: float = field(default=0.0, init=False)  # negative when more were spent
    _refilled_at: float = field(default=0.0, init=False)
    _served_before: int = field(default=0, init=False)
    _ticking: bool = field(default=False, init=False)

    @property
    def in_debt(self) -> bool:
        """Whether the responses so far cost more than there were tokens."""
        self._refill()
        return bool(self._waiting) or self._tokens < 0

    def enter(self, resume: Resume, *, answered_at: float, cost: float = 1.0) -> bool:
        """Call `resume()` later, and return True; return False when there is nothing to wait for.

        `answered_at` is the monotonic time of the response that cost so much. Those behind it wait for its tokens.
        """
        not_before = answered_at + self.pause
        if (self.pause and time.monotonic() >= not_before) or (not self._waiting and self.has_room()):
            return False
        self._refill()
        self._waiting[resume] = not_before, cost
        if not self._ticking:
            self._ticking = True
            asyncio.get_running_loop().call_later(TICK, self._tick)
        return True

    def cancel(self, resume: Resume) -> None:
        """Forget a connection that has ended, but not what it cost: its client may be back already."""
        if resume in self._waiting:
            self.charge(self._waiting.pop(resume)[1])

    def charge(self, cost: float) -> None:
        """Have all others wait for the tokens that a connection cost that has ended."""
        self._refill()
        self._tokens = max(self._tokens - cost, -MAX_DEBT)

    def _refill(self) -> None:
        now, served = time.monotonic(), self.served()
        self._tokens += self.rate * (now - self._refilled_at) + self.share * (served - self._served_before)
        self._tokens = min(self._tokens, BURST if self._waiting else 0.0)
        self._refilled_at, self._served_before = now, served

    def _tick(self) -> None:
        self._refill()
        try:
            self._resume_some(time.monotonic())
        finally:
            self._ticking = bool(self._waiting)
            if self._ticking:
                asyncio.get_running_loop().call_later(TICK, self._tick)

    def _resume_some(self, now: float) -> None:
        early = BURST
        while self._waiting:
            resume, (not_before, cost) = next(iter(self._waiting.items()))
            if now < not_before or (self._tokens <= 0 and now < not_before + self.longest):
                if not early or not self.has_room():
                    break
                early -= 1
            else:
                self._tokens -= cost
            del self._waiting[resume]
            resume()
