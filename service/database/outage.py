"""What a worker knows of an outage of PostgreSQL: since when no connection can be made, and why."""

import logging
import threading
import time

from service.database.refusals import Refusal

logger = logging.getLogger(__name__)

# Seconds from the beginning of an outage for which requests wait, to ride over a fast restart; and the wait of later
# ones.
PATIENCE = 1.0
LEAST_PATIENCE = 0.05

UP_FOR = 2.0  # seconds after a statement was served for which the server counts as up


class Outage:
    """Begins with a connection that cannot be made and ends with one that can. Logs each once. Thread-safe.

    A connection that serves requests shows that the server is up, although another one cannot be made: at a limit.
    """

    def __init__(self) -> None:
        self.refusal: Refusal | None = None  # of the newest attempt to connect; None when it succeeded
        self.served_at = 0.0  # when a connection was last used without an error, on the monotonic clock
        self._began_at = 0.0
        self._attempts = 0
        self._lock = threading.Lock()  # the pool connects on several threads

    @property
    def error(self) -> str:
        """Why the server is taken to be down; empty when it is not."""
        refusal = self.refusal
        return refusal.text if refusal and self.served_at < time.monotonic() - UP_FOR else ""

    def begin(self, refusal: Refusal) -> None:
        """Note that no connection can be made."""
        with self._lock:
            begins, self.refusal = self.refusal is None, refusal
            if begins or self.served_at > self._began_at:
                self._began_at, self._attempts = time.monotonic(), 0
            self._attempts += 1
        if begins:
            logger.error("cannot connect: %s", refusal.text)

    def end(self) -> None:
        """Note that a connection was made."""
        with self._lock:
            ends, self.refusal = self.refusal is not None, None
            seconds = time.monotonic() - self._began_at
        if ends:
            logger.info("connected again, %.1f s and %d attempts later", seconds, self._attempts)

    def patience(self) -> float:
        """Return how many seconds a request may wait for a connection."""
        if self.refusal is None:
            return PATIENCE
        return max(LEAST_PATIENCE, self._began_at + PATIENCE - time.monotonic())
