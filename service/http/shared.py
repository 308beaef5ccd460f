"""What takes long to make, made once for all who ask for it in the meantime."""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import to_thread

T = TypeVar("T")

PAUSE = 9  # times as long as it took to make: however many ask, a tenth of the time goes there


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
            began, self._next = time.monotonic(), None
            try:
                return await to_thread.run_sync(self._make)
            finally:
                ended = time.monotonic()
                self._not_before = ended + PAUSE * (ended - began)
