"""Watch which of the servers takes writes, and since when."""

import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

import psycopg

PERIOD = 0.05  # seconds: how exactly a promotion is timed


class RoleWatch:
    """Ask each server 20 times a second, over a connection that is kept, until the `with` block ends."""

    def __init__(self, nodes: Mapping[str, str], password: str) -> None:
        self._nodes = nodes
        self._password = password
        self._stopped = threading.Event()
        self._promotions: list[float] = []  # moments on the monotonic clock, in order

    def __enter__(self) -> Self:
        for address in self._nodes.values():
            # As a daemon: one that waits for a frozen server holds up nobody's end.
            threading.Thread(target=self._watch, args=(address,), daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()

    def promoted(self, since: float) -> float | None:
        """Return when the first server began to take writes after `since`, or None."""
        return next((moment for moment in list(self._promotions) if moment > since), None)

    def _watch(self, address: str) -> None:
        was_primary = False
        while not self._stopped.wait(PERIOD):
            with suppress(psycopg.Error), self._connect(address) as conn:
                while not self._stopped.wait(PERIOD):
                    row = conn.execute("SELECT NOT pg_is_in_recovery()").fetchone()
                    assert row
                    [is_primary] = row
                    if is_primary and not was_primary:
                        self._promotions.append(time.monotonic())
                    was_primary = is_primary

    def _connect(self, address: str) -> psycopg.Connection:
        return psycopg.connect(
            host=address, dbname="postgres", user="postgres", password=self._password, autocommit=True,
            connect_timeout=2, tcp_user_timeout=2000, keepalives_idle=1, keepalives_interval=1, keepalives_count=2,
        )  # fmt: skip
