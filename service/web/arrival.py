"""What the server and the application share about one request."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from service.web.admission import Permit
from service.web.problems import Problem


@dataclass(slots=True)
class Arrival:
    """In a request's scope as `arrival`: set by extras/http/protocol.py, or by the middleware under another server."""

    received_at: float = field(default_factory=time.monotonic)
    disconnected: Callable[[], bool] = lambda: False  # whether the client has left
    permit: Permit | None = None  # acquired by the server; released before the response is sent
    low_priority: bool = False  # after a failed log-in on this connection: its next one hashes after all others

    # Set by the application.
    admitted: bool = False  # the endpoint was run
    hashes: bool = False  # the request hashes a password

    rejected: Problem | None = None  # what the server has answered, as the body could not be parsed
