"""Build an expensive result once for all who ask for it at the same time."""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

from anyio import to_thread

T = TypeVar("T")

PAUSE = 9  # times the CPU time of a build: however many ask, builds take a tenth of a core
MAX_PAUSE = 1.0  # seconds


class SingleFlight(Generic[T]):
    """Use it on one event loop only."""

    def __init__(self, build: Callable[[], T]) -> None:
        """Build with `build`, on a spare thread."""
        self._build = build
        self._running = asyncio.Lock()
        self._next: asyncio.Task[T] | None = None  # not begun: its result is no older than the question
        self._not_before = 0.0

    async def get(self) -> T:
        """Return a result that was built after this call. Raises what `build` raises."""
        if self._next is None:
            self._next = asyncio.create_task(self._run())
        return await asyncio.shield(self._next)

    async def _run(self) -> T:
        async with self._running:
            await asyncio.sleep(self._not_before - time.monotonic())
            self._next = None
            return await to_thread.run_sync(self._build_and_pause)

    def _build_and_pause(self) -> T:
        started = time.thread_time()
        try:
            return self._build()
        finally:
            self._not_before = time.monotonic() + min(MAX_PAUSE, PAUSE * (time.thread_time() - started))
