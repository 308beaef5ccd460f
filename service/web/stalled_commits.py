"""Refuse writes while commits wait for a synchronous standby that does not answer.

Nothing ends such a wait: PostgreSQL would report a commit that was cancelled as done, though no standby has it. So a
write is cut at its deadline, and leaves a session behind at PostgreSQL, within max_connections, until the standby
answers. It is by these sessions that the next write can be refused, and that the end of the wait is seen. A worker with
one thread has none left for reads meanwhile. See
https://www.postgresql.org/docs/current/warm-standby.html#SYNCHRONOUS-REPLICATION
"""

import asyncio
import logging
import math
import time
from contextlib import suppress

from psycopg import Error

from service.database.errors import CommitsStalled, DatabaseFailure
from service.database.pool import Database
from service.database.watchdog import DEADLINE
from service.telemetry.record import RECORD, Record
from service.web.workers import Workers

logger = logging.getLogger(__name__)

PERIOD = 0.5  # seconds between two looks
ASK_TIMEOUT = 2.0  # seconds

# Sessions of other workers and instances count too: their role is ours. Without more rights, no others are visible.
SELECT_STALLED = """
    SELECT EXISTS (SELECT
                   FROM pg_stat_activity
                   WHERE usename = current_user
                     AND wait_event = 'SyncRep'
                     AND query_start < clock_timestamp() - make_interval(secs => %(seconds)s::float8))
"""


class StalledCommits:
    """Of one worker. Asks the database only after something has held a connection for `patience` seconds."""

    def __init__(self, workers: Workers, database: Database, *, patience: float) -> None:
        """Take commits for stalled when one waits for more than `patience` seconds."""
        self._workers = workers
        self._database = database
        self._patience = patience
        self._stalled = False

    def check(self) -> None:
        """Raise CommitsStalled when a write would have to wait."""
        if self._stalled:
            raise CommitsStalled("a synchronous standby does not answer")

    async def watch(self) -> None:
        """Look every PERIOD."""
        RECORD.set(Record("-", "look for stalled commits", ""))
        while True:
            await asyncio.sleep(PERIOD)
            if self._stalled or self._is_suspicious():
                with suppress(DatabaseFailure, Error, TimeoutError):  # looked for again in a moment
                    await self._look()

    def _is_suspicious(self) -> bool:
        """Whether something has held a connection for long, and there is another one to ask over."""
        since = time.monotonic() - self._patience
        held = sum(began < since for began, _ in self._database.watchdog.holders())
        return 0 < held < self._workers.size

    async def _look(self) -> None:
        DEADLINE.set(time.monotonic() + ASK_TIMEOUT)
        arguments = {"database": self._database, "seconds": self._patience}
        async with asyncio.timeout(ASK_TIMEOUT):  # and no `start_by`, at which it would be counted as a refused request
            stalled = await self._workers.run(select_stalled, arguments, start_by=math.inf)
        if stalled and not self._stalled:
            logger.error("writes are refused: commits wait for a synchronous standby that does not answer")
        elif self._stalled and not stalled:
            logger.info("writes are carried out again: no commit waits for a synchronous standby")
        self._stalled = stalled


def select_stalled(database: Database, seconds: float) -> bool:
    """Return whether a commit has waited for a synchronous standby for more than `seconds`."""
    with database.connection() as conn:
        [stalled] = conn.fetchone(SELECT_STALLED, {"seconds": seconds}) or [False]
    return bool(stalled)
