"""PostgreSQL goes away under load, and comes back."""

import time
from collections.abc import Callable

from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service


def last(seconds: float) -> None:
    """Let an outage last: the one thing here that is measured in time and not in events."""
    time.sleep(seconds)


def survive(outage: float, service: Service, database: TestDatabase, record_figure: Callable[[str], None]) -> None:
    """See that after so many seconds without PostgreSQL the first 200 comes within one, and nothing is lost."""
    with Load(service.url) as load:
        database.cluster.stop()
        last(outage)
        database.cluster.start()
        back = time.monotonic()
        until(lambda: load.statuses(back, "GET")[200] > 100, "reads are answered again")
    load.reconcile(database)
    first = load.first(200, back)
    record_figure(f"outage of {outage:g} s: first 200 after {first:.3f} s; {dict(load.statuses())}")
    assert not load.unexpected({200, 201, 503})
    assert first < 1
