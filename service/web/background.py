"""Work of a worker that belongs to no request."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run `work` on the event loop while the block runs; then cancel it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
