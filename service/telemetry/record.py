"""What became of one request, noted by whoever knows it. The line in the log and the metrics are made of it."""

import time
from contextvars import ContextVar


def name_of(method: str, route: str) -> str:
    """Return what a request is called, as `GET /users/{user_id}`; one word where it has no route."""
    return f"{method} {route}".strip()


class Record:
    """One request. Times are seconds; one that stays None did not come about."""

    __slots__ = (
        "code",
        "duration",
        "held",
        "method",
        "path",
        "queued",
        "queued_at",
        "queued_to_hash",
        "request_id",
        "route",
        "started",
        "status",
        "waited",
    )

    def __init__(self, request_id: str, method: str, path: str, started: float = 0.0) -> None:
        """Begin now, or at an earlier time of the monotonic clock."""
        self.request_id = request_id
        self.method = method
        self.path = path  # as it was sent, without the query, in which there may be somebody's email
        self.route = ""  # the template; empty when none fits
        self.status = 0  # until the answer starts
        self.code = ""  # of the problem, when it is one
        self.queued: float | None = None  # for a thread
        self.queued_to_hash: float | None = None  # for a core
        self.waited: float | None = None  # on the thread, for a connection
        self.held: float | None = None  # a connection
        self.started = started or time.monotonic()
        self.queued_at = self.started  # since when it waits for a core or a thread
        self.duration = 0.0

    @property
    def name(self) -> str:
        """What it is called in the log and at /pool."""
        return name_of(self.method, self.route)

    def end(self) -> None:
        """End now."""
        self.duration = time.monotonic() - self.started


# Outside a request there is one that nobody reads.
RECORD: ContextVar[Record] = ContextVar("RECORD", default=Record("-", "", ""))  # noqa: B039 - see above
