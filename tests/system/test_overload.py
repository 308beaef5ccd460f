"""A thousand connections at once, of which eight threads can serve a part."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from tests.support.load_clients import USERS, Load, goodput, load, new_clients, quantile
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service
from tests.support.sessions import OURS

pytestmark = pytest.mark.alone

MANY = 1000
THREADS = 8
SHORT_QUEUE = {"QUEUE_LENGTH": "256"}  # by default all of them may wait, and nobody is refused
QUEUE_WAIT = 2.0  # seconds: the default
NEW = 400  # a second
ROUNDS = 3  # of five seconds each, between which the peak is measured: it changes with what else the machine does
FEW = (8, 16, 64)  # connections: the peak is at one of these

FILL = f"""
    INSERT INTO public."user" (id, fname, lname, email, password_hash)
    SELECT n, 'Ada', 'Lovelace', n || '@example.com', '$argon2id$'
    FROM generate_series(1, {USERS}) AS n
"""


@contextmanager
def counted(database: TestDatabase) -> Iterator[list[int]]:
    """Count the service's sessions at PostgreSQL, again and again."""
    counts: list[int] = []
    stopped = threading.Event()

    def count() -> None:
        with database.as_superuser() as conn:
            while not stopped.wait(0.2):
                counts.extend(row[0] for row in conn.execute(f"SELECT count(*) {OURS}"))

    thread = threading.Thread(target=count)
    thread.start()
    try:
        yield counts
    finally:
        stopped.set()
        thread.join()


def test_a_thousand_connections_at_once_are_served_or_refused_and_nobody_waits_for_long(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Service({**database.environment, **SHORT_QUEUE}) as service:
        with database.connect() as conn:
            conn.execute(FILL)
        load(service.url, 64, 2)  # to warm up
        peaks: list[float] = []
        goods: list[float] = []
        overloads: list[Load] = []
        with counted(database) as counts:
            for _ in range(ROUNDS):
                peaks.append(max(goodput(service.url, few, 1) for few in FEW))
                goods.append(goodput(service.url, MANY, 5))
                overloads.append(load(service.url, MANY, 5))
        unloaded = load(service.url, 1, 2)
        assert " 500 " not in service.log

    ratio = quantile([good / peak for good, peak in zip(goods, peaks, strict=True)], 0.5)
    answered = {status for each in overloads for status in each.answers}
    refused = quantile([seconds for each in overloads for seconds in each.answers[503]], 0.99)
    accepted = quantile([seconds for each in overloads for seconds in each.answers[200]], 0.99)
    alive = quantile([seconds for each in overloads for seconds in each.alive], 0.99)
    alone = unloaded.quantile(200, 0.99)
    refusals = sum(len(each.answers[503]) for each in overloads)
    record_figure(
        f"{MANY} connections, {THREADS} threads: goodput {ratio:.2f} of the peak"
        f" ({[round(good) for good in goods]} of {[round(peak) for peak in peaks]} a second),"
        f" {refusals} refused; p99: accepted {accepted * 1000:.0f} ms (alone {alone * 1000:.1f} ms),"
        f" refused {refused * 1000:.0f} ms, /livez {alive * 1000:.0f} ms; {max(counts)} sessions at the most"
    )
    assert answered == {200, 503}
    assert max(counts) == THREADS
    assert accepted < QUEUE_WAIT + 2 * alone
    assert refused < 0.5, "the promise is 50 ms, on a machine that does nothing else"
    assert alive < 0.5, "likewise, 20 ms"
    assert ratio > 0.5, "the promise is 0.95, on a machine that does nothing else"


def test_new_clients_are_answered_at_once_beside_a_crowd_that_fills_the_queue(
    database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Service({**database.environment, **SHORT_QUEUE}) as service, ThreadPoolExecutor(1) as elsewhere:
        with database.connect() as conn:
            conn.execute(FILL)
        busy = elsewhere.submit(goodput, service.url, MANY, 5)
        until(lambda: " 503 " in service.log, "the queue is full")
        waited = new_clients(service.url, NEW, 3)
        assert busy.result() > 0
        assert " 500 " not in service.log
    record_figure(
        f"{NEW} new clients a second beside {MANY}: connected and answered in"
        f" {quantile(waited, 0.5) * 1000:.0f} ms, p99 {quantile(waited, 0.99) * 1000:.0f} ms"
    )
    assert quantile(waited, 0.99) < 0.5, "as they were refused, or had a place; a second and more when they wait unseen"
