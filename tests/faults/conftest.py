"""A cluster of its own for each fault, and a service that is told to give up soon."""

from collections.abc import Iterator

import pytest

from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.replication import streaming_standby

# The same order as the defaults, and shorter, so that a test of a deadline takes two seconds and not ten.
SHORT = {
    "LOCK_TIMEOUT": "0.5",
    "STATEMENT_TIMEOUT": "1",
    "LEAK_THRESHOLD": "1.5",
    "REQUEST_DEADLINE": "2",
    "QUEUE_WAIT": "1",
    "CONNECT_TIMEOUT": "1",
}


@pytest.fixture(scope="module", autouse=True)
def _forked(cheap_hashes: None) -> None:
    """Fork the services: no start is tested here."""


@pytest.fixture
def victim() -> Iterator[Cluster]:
    with Cluster(installed()["18"]) as cluster:
        yield cluster


@pytest.fixture
def database(victim: Cluster) -> TestDatabase:
    return victim.create_database()


@pytest.fixture
def pair(victim: Cluster, database: TestDatabase) -> Iterator[tuple[Cluster, Cluster]]:  # noqa: ARG001 - both have it
    """`victim`, and a standby that streams from it."""
    with streaming_standby(victim) as standby:
        yield victim, standby


@pytest.fixture
def service(database: TestDatabase) -> Iterator[Service]:
    with Service({**database.environment, **SHORT}) as service:
        yield service
