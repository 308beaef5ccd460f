"""The last two minutes of all workers, and what is known of the database, for /pool."""

import fcntl
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

from service.database.outage import Outage
from service.telemetry import metrics
from service.telemetry.board import BOARD, Row, locked
from service.telemetry.metrics import buckets, quantile, whole

EVERY = 1.0  # seconds between two points of the history
POINTS = 120
NAME = "chronicle.json"

Json = dict[str, Any]
Rows = list[tuple[Row, bool]]


class Chronicle:
    """A file that one of the workers writes once a second: whoever has the lock on it."""

    def __init__(self, outage: Outage) -> None:
        """Be nobody's yet."""
        self._outage = outage
        self.ours = False
        self.census: Json = {}
        self.trouble = ""
        self._content: Json = {}
        self._lock = -1
        self._busy = threading.Lock()  # a write goes on when its task was cancelled
        self._path = Path()

    def open(self, folder: Path) -> None:
        """Be where all workers find it."""
        self._path = folder / NAME
        self._lock = os.open(folder / "chronicle.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def close(self) -> None:
        """Leave it to another worker."""
        with self._busy:
            self.ours = False
            os.close(self._lock)
            self._lock = -1

    def write(self) -> None:
        """Add a point, when it is ours to write."""
        with self._busy:
            if self._lock >= 0:
                self._write()

    def _write(self) -> None:
        if not self.ours:
            if not locked(self._lock, fcntl.LOCK_EX):
                return
            self.ours, self._content = True, read(self._path.parent)
            before = self._content.get("database", {})
            if before.get("version"):  # what the worker before this one knew, until this one has asked
                self.census, self.trouble = {**before, "budget": self._content["budget"]}, before["trouble"] or ""
            return
        failure = self._outage.error
        trouble = " ".join(str(failure).split()) if failure else self.trouble
        metrics.UP.set(not trouble)
        self._content = {
            **_longer(self._content, BOARD.rows()),
            "database": {
                "state": "down" if trouble else "up" if self.census else "unknown",
                **{name: self.census.get(name) for name in ("version", "up_since", "latency")},
                "trouble": trouble or None,
            },
            "budget": self.census.get("budget") if not trouble else None,
        }
        new = self._path.with_suffix(".new")
        new.write_text(json.dumps(self._content))
        new.replace(self._path)


def read(folder: Path) -> Json:
    """Return what was written; nothing when nothing was."""
    try:
        found: Json = json.loads((folder / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return found


def _longer(content: Json, rows: Rows) -> Json:
    """Return the history with one point more: what came about since the last one."""
    users = [labels for labels in metrics.REQUESTS.places if labels[0].startswith("/users")]
    now: Json = {
        "answers": buckets(rows, metrics.REQUESTS, users),
        "held": buckets(rows, metrics.USE_TIME),
        "refused": whole(rows, metrics.REFUSED),
        "errors": sum(buckets(rows, metrics.REQUESTS, [labels for labels in users if labels[2][0] == "5"])),
    }
    before = content.get("counted", now)
    answers, held = (
        [new - old for new, old in zip(now[name], before[name], strict=True)] for name in ("answers", "held")
    )
    refused = now["refused"] - before["refused"]
    point = {
        "requests": sum(answers),
        "refused": refused,
        "failed": max(0.0, now["errors"] - before["errors"] - refused),
        "p50": quantile(answers, 0.5),
        "p99": quantile(answers, 0.99),
        "held_p50": quantile(held, 0.5),
        "held_p99": quantile(held, 0.99),
        "queued": whole(rows, metrics.QUEUED),
    }
    history = content.get("history", {})
    return {
        "until": time.time(),
        "counted": now,
        "history": {name: [*history.get(name, []), value][-POINTS:] for name, value in point.items()},
    }
