"""What a request meets that gets no connection."""

import pytest

from service.database.errors import DatabaseUnavailable, DeadlineExceeded
from service.database.pool import Checkout, Database, Pool
from service.database.refusals import Refusal
from service.database.watchdog import Watchdog
from service.telemetry import metrics


@pytest.fixture
def database() -> Database:
    return Database(size=1, watchdog=Watchdog(leak_threshold=1))


def checkout(database: Database, patience: float) -> None:
    with Checkout(database, Pool(min_size=1, open=False), patience):
        pytest.fail("it got one")


def timeouts() -> float:
    (counter,) = metrics.CONNECTION_TIMEOUTS.collect()
    return counter.samples[0].value


def test_without_time_left_the_deadline_is_named_and_not_the_database(database: Database) -> None:
    with pytest.raises(DeadlineExceeded):
        checkout(database, 0)


def test_in_an_outage_the_database_is_named_even_without_time_left(database: Database) -> None:
    database.outage.begin(Refusal("no route to host"))
    with pytest.raises(DatabaseUnavailable):
        checkout(database, 0)


def test_each_is_counted(database: Database) -> None:
    before = timeouts()
    with pytest.raises(DatabaseUnavailable):
        checkout(database, 0.01)
    assert timeouts() == before + 1
