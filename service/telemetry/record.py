"""What happened to one request. Its line in the log and its metrics are made from this."""

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Record:
    """One request. Times are in seconds; None means that it did not come to that."""

    request_id: str
    method: str
    path: str  # as it was sent, without the query, which may hold an email address
    started: float = 0.0  # on the monotonic clock; now, unless the server noticed the request earlier
    route: str = ""  # the template; empty if none matches
    status: int = 0  # until the response starts
    code: str = ""  # of the problem, if the response is one
    caller: str = ""  # the name of the API key
    subject: str = ""  # the id of what a write is about, percent-encoded: it cannot forge a log line
    replayed: bool = False  # the outcome of an earlier request with the same Idempotency-Key
    queued: float | None = None  # waited for a thread
    queued_to_hash: float | None = None  # waited for a core
    waited: float | None = None  # on the thread, for a connection
    held: float | None = None  # had a connection
    duration: float = 0.0
    queued_at: float = field(init=False)  # since when it waits for a core or a thread, on the monotonic clock

    def __post_init__(self) -> None:
        self.started = self.queued_at = self.started or time.monotonic()

    @property
    def name(self) -> str:
        """The request in the log and at /pool, such as `GET /users/{user_id}`. Without a route only the method."""
        return f"{self.method} {self.route}".strip()

    def end(self) -> None:
        """Stop the clock."""
        self.duration = time.monotonic() - self.started


# Outside a request there is one that nobody reads.
RECORD: ContextVar[Record] = ContextVar("RECORD", default=Record("-", "", ""))  # noqa: B039 - see above
