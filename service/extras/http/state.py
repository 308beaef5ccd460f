"""What all connections of a worker share."""

import asyncio
from dataclasses import dataclass, field

from service.extras.http.backoff import Backoff, LoopLag
from service.extras.http.clients import Clients, max_clients
from service.extras.http.early_queue import EarlyQueue
from service.web.admission import Admission
from service.web.problems import RETRY_AFTER

MAX_LAG = 0.02  # seconds that the event loop may be late before requests that take no thread have to wait


@dataclass
class HttpState:
    """In the lifespan state as `http`. By default nothing waits, as for an application that passes no state."""

    clients: Clients = field(default_factory=Clients)
    early_queue: EarlyQueue | None = None
    refused: Backoff = field(default_factory=Backoff)  # after a 503, for who comes again before Retry-After
    cheap: Backoff = field(default_factory=Backoff)  # after any other response that took no thread
    reconnect: Backoff = field(default_factory=Backoff)  # of new connections, and of the last response on others


def http_state(early_queue: EarlyQueue, hashing: Admission) -> HttpState:
    """Return the state for an application whose reads wait in `early_queue`."""
    queue = early_queue.admission
    lag = LoopLag()
    lag.start(asyncio.get_running_loop())

    def served() -> int:
        return queue.released

    def is_at_rest() -> bool:
        return not queue.in_flight and lag.seconds < MAX_LAG

    def has_room() -> bool:
        return bool(queue.free and hashing.free)

    return HttpState(
        clients=Clients(max_clients(queue.limit)),
        early_queue=early_queue,
        refused=Backoff(rate=50, share=1 / 8, served=served, has_room=has_room, longest=5, pause=RETRY_AFTER),
        cheap=Backoff(rate=100, share=1 / 4, served=served, has_room=is_at_rest, longest=5),
        # Probes are among these, and give up after a second.
        reconnect=Backoff(rate=100, share=1 / 4, served=served, has_room=is_at_rest, longest=0.5),
    )
