"""Writes outside a request."""

from service.database.pool import Database
from service.database.watchdog import Watchdog
from service.web.idempotency import Write, WriteHeaders


def plain_write() -> Write:
    """Return a write without an Idempotency-Key."""
    return Write(Database(1, Watchdog(leak_threshold=1)), WriteHeaders())
