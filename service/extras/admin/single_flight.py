"""What takes long to make, made once for all who ask for it in the meantime."""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import to_thread

T = TypeVar("T")

PAUSE = 9  # times what it took of a core to make: however many ask, a tenth of a core goes there
LONGEST = 1.0  # seconds of pause


class Shared(Generic[T]):
    """To be used on one event loop only."""

    def __init__(self, make: Callable[[], T]) -> None:
        """Make it with `make`, on a thread that is spare."""
        self._make = make
        self._turn = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None  # not begun: what it will tell is no older than who waits for it
        self._not_before = 0.0

    async def get(self) -> T:
        """Return what is true now or a moment later. Raises what making it does."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> T:
        async with self._turn:
            await asyncio.sleep(self._not_before - time.monotonic())
            self._next = None
            made, used = await to_thread.run_sync(self._timed)
            self._not_before = time.monotonic() + min(LONGEST, PAUSE * used)
        return made

    def _timed(self) -> tuple[T, float]:
        began = time.thread_time()
        return self._make(), time.thread_time() - began
