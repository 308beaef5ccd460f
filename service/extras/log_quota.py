"""Limit the log lines of requests that are cheap to answer, so that a flood of them cannot fill a disk."""

import asyncio
import logging
from collections import Counter
from http import HTTPStatus

from service.telemetry.metrics import CLIENT_CLOSED_REQUEST
from service.telemetry.record import Record

# Lines a second, in each worker, of requests that took no thread: refusals, probes, unknown paths.
CHEAP_LINES = 100

POLLED = "/pool"  # the route that its page asks for twice a second

logger = logging.getLogger("service.request")


class LogQuota:
    """Log the first CHEAP_LINES of each second; then count the others by their outcome, in one line."""

    def __init__(self) -> None:
        self._left = CHEAP_LINES
        self._second_ends = 0.0
        self._others: Counter[str] = Counter()

    def is_logged(self, record: Record) -> bool:
        """Return whether a request has a line of its own. Call it on the event loop, once for each request."""
        if record.route == POLLED and record.status == HTTPStatus.OK:
            return False
        if record.queued is not None:  # it took a thread
            return True
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._second_ends:
            self._left, self._second_ends = CHEAP_LINES, now + 1
        if self._left:
            self._left -= 1
            return True
        if not self._others:
            loop.call_at(self._second_ends, self.summarize)
        self._others[record.code or str(record.status or CLIENT_CLOSED_REQUEST)] += 1
        return False

    def summarize(self) -> None:
        """Log the number of requests without a line. Call it when the worker ends, too."""
        if self._others:
            counts = ", ".join(f"{outcome} {count:,}" for outcome, count in self._others.most_common())
            logger.info("%s more requests in the same second: %s", f"{self._others.total():,}", counts)
            self._others.clear()
