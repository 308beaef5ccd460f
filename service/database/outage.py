"""What a worker knows of an outage of PostgreSQL: since when no connection can be made, and why."""

import logging
import threading
import time

logger = logging.getLogger(__name__)

# Seconds from the beginning of an outage for which requests wait, to ride over a fast restart; and the wait of later
# ones.
PATIENCE = 1.0
LEAST_PATIENCE = 0.05


class Outage:
    """Begins with a connection that cannot be made and ends with one that can. Logs each once. Thread-safe."""

    def __init__(self) -> None:
        self.error: Exception | None = None  # of the newest attempt to connect; None when it succeeded
        self._began_at = 0.0
        self._attempts = 0
        self._lock = threading.Lock()  # the pool connects on several threads

    def begin(self, error: Exception) -> None:
        """Note that no connection can be made."""
        with self._lock:
            begins = self.error is None
            if begins:
                self._began_at, self._attempts = time.monotonic(), 0
            self._attempts += 1
            self.error = error
        if begins:
            logger.error("cannot connect: %s", " ".join(str(error).split()))

    def end(self) -> None:
        """Note that a connection was made."""
        with self._lock:
            ends, self.error = self.error is not None, None
            seconds = time.monotonic() - self._began_at
        if ends:
            logger.info("connected again, %.1f s and %d attempts later", seconds, self._attempts)

    def patience(self) -> float:
        """Return how many seconds a request may wait for a connection."""
        if self.error is None:
            return PATIENCE
        return max(LEAST_PATIENCE, self._began_at + PATIENCE - time.monotonic())
