"""Connections that must wait before they are read again, because reading them would take the GIL from the threads.

An answer that takes no thread costs the client nothing: 64 clients in a loop on /livez, or 1,000 that send again at
once after a 503, left the threads a tenth of their requests. A client that waits here costs nothing either: its next
request stays in the kernel. The event loop gives the GIL to a thread only after 5 ms, so this is about how often the
loop has work at all, not about how much.
"""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

TICK = 0.01  # seconds between two looks at those that wait
BURST = 32  # connections that resume in one tick when there is room: more would keep the loop for long

Resume = Callable[[], object]


class Backoff:
    """A line of connections: the first resumes when its time has come, or as soon as there is room.

    To be used on one event loop only.
    """

    def __init__(self, *, rate: float, pause: float, has_room: Callable[[], bool]) -> None:
        """Resume `rate` connections a second at most, none within `pause` seconds, unless `has_room()`."""
        self._rate = rate
        self._pause = pause
        self._has_room = has_room
        self._waiting: OrderedDict[Resume, float] = OrderedDict()  # and the time at which each may resume
        self._next_slot = 0.0
        self._ticks = False

    def enter(self, resume: Resume, *, cost: float = 1.0) -> bool:
        """Call `resume()` later, and return True; return False when there is room, and nothing to wait for.

        What comes after waits longer by the `cost` of this one, where 1 is a small answer.
        """
        if self._has_room() and not self._waiting:
            return False
        now = time.monotonic()
        slot = max(now, self._next_slot)
        self._next_slot = slot + cost / self._rate
        self._waiting[resume] = max(slot, now + self._pause)
        if not self._ticks:
            self._ticks = True
            asyncio.get_running_loop().call_later(TICK, self._tick)
        return True

    def cancel(self, resume: Resume) -> None:
        """Forget a connection that has ended."""
        self._waiting.pop(resume, None)

    def _tick(self) -> None:
        now = time.monotonic()
        early = BURST
        while self._waiting:
            resume, due = next(iter(self._waiting.items()))
            if due > now:
                if not early or not self._has_room():
                    break
                early -= 1
            del self._waiting[resume]
            resume()
        self._ticks = bool(self._waiting)
        if self._ticks:
            asyncio.get_running_loop().call_later(TICK, self._tick)
        else:
            self._next_slot = 0.0
