"""The pool of the peers that use asyncpg: its default size, 10, and its prepared statements, which are on by default.

By default a connection that comes back costs a second round trip, for `RESET ALL` and the like; these statements leave
nothing behind in a session, so `reset` is nothing, as those who look for speed have it.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
from starlette.applications import Starlette

from tests.bench.peers.models import DATABASE_URL


async def leave_as_it_is(conn: Any) -> None:
    pass


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with asyncpg.create_pool(DATABASE_URL, reset=leave_as_it_is) as app.state.pool:
        yield
