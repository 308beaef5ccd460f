"""Futures that wait in line, each until a time of its own, and the timer that makes the late ones fail."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")

TICK = 0.05  # seconds between two looks at who is late


class WaitingLine(Generic[T]):
    """First come, first served. To be used on one event loop only."""

    def __init__(self) -> None:
        self._until: OrderedDict[asyncio.Future[T], float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._until)

    def join(self, until: float) -> asyncio.Future[T]:
        """Return a future at the end of the line, which is late after the monotonic time `until`."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._until[future] = until
        return future

    def leave(self, future: asyncio.Future[T]) -> None:
        """Take a future out of the line, if it is there."""
        self._until.pop(future, None)

    def serve(self, result: T) -> bool:
        """Give `result` to the first in line; return False when nobody waits."""
        while self._until:
            future, _ = self._until.popitem(last=False)
            if not future.done():
                future.set_result(result)
                return True
        return False

    def refuse_last(self, reason: Callable[[], Exception]) -> bool:
        """Make the last in line fail with `reason()`; return False when nobody waits."""
        while self._until:
            future, _ = self._until.popitem()
            if not future.done():
                future.set_exception(reason())
                return True
        return False

    def refuse_late(self, now: float, reason: Callable[[], Exception]) -> None:
        """Make those who are late fail with `reason()`: the oldest are in front."""
        while self._until:
            future, until = next(iter(self._until.items()))
            if until > now and not future.done():
                return
            del self._until[future]
            if not future.done():
                future.set_exception(reason())


class Expires(Protocol):
    """Something in which nobody may wait too long."""

    def expire(self, now: float) -> None:
        """Refuse whoever has waited until the monotonic time `now` or an earlier one."""


@asynccontextmanager
async def expiring(*queues: Expires) -> AsyncIterator[None]:
    """Have `queues` expire regularly while the block runs. One timer for all: a timer for each request costs 3 %."""

    async def run() -> None:
        while True:
            await asyncio.sleep(TICK)
            for queue in queues:
                queue.expire(time.monotonic())

    timer = asyncio.create_task(run())
    try:
        yield
    finally:
        timer.cancel()
