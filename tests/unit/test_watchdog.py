"""Who holds a connection: what is cut at its deadline, and what is reported. Of a connection it needs the socket."""

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextvars import Context
from typing import cast

import pytest
from prometheus_client import REGISTRY
from psycopg import Connection, OperationalError

from service.database.watchdog import DEADLINE, Watchdog, time_left
from service.telemetry.record import RECORD, Record
from tests.support.polling import until

LONG = 60.0  # seconds: longer than a test


class Peers:
    """Two ends of a connection; the watchdog gets one."""

    def __init__(self) -> None:
        self.near, self.far = socket.socketpair()
        self.far.settimeout(0.05)

    @property
    def connection(self) -> Connection:
        return cast("Connection", self)

    def fileno(self) -> int:
        """Return the descriptor as psycopg does; raise OperationalError when the connection is closed."""
        if self.near.fileno() < 0:
            raise OperationalError("the connection is closed")
        return self.near.fileno()

    def is_cut(self) -> bool:
        try:
            return self.far.recv(1) == b""
        except TimeoutError:
            return False

    def close(self) -> None:
        self.near.close()
        self.far.close()


@pytest.fixture
def peers() -> Iterator[Peers]:
    peers = Peers()
    yield peers
    peers.close()


@pytest.fixture(autouse=True)
def _request() -> Iterator[None]:
    """Be within a request without a deadline."""
    deadline, record = DEADLINE.set(0.0), RECORD.set(Record("r1", "GET", "/users", route="/users"))
    yield
    RECORD.reset(record)
    DEADLINE.reset(deadline)


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    watchdog = Watchdog(leak_threshold=LONG)
    watchdog.start()
    yield watchdog
    watchdog.stop()


def total(name: str) -> float:
    return REGISTRY.get_sample_value(name) or 0.0


def test_a_connection_is_cut_at_the_deadline_of_its_request(watchdog: Watchdog, peers: Peers) -> None:
    before = total("db_client_connection_cut_total")
    DEADLINE.set(time.monotonic() + 0.2)
    lease = watchdog.begin(peers.connection)
    assert not peers.is_cut()
    until(peers.is_cut, "the connection is cut", within=2)
    until(lambda: total("db_client_connection_cut_total") == before + 1, "it is counted")
    time.sleep(0.25)
    assert (lease.cut, total("db_client_connection_cut_total")) == (True, before + 1)
    assert time_left(LONG) == 0


def test_a_connection_without_a_deadline_or_given_back_is_not_cut(watchdog: Watchdog, peers: Peers) -> None:
    free = Context().run(watchdog.begin, peers.connection)  # outside a request
    assert Context().run(time_left, 7) == 7
    DEADLINE.set(time.monotonic() + 0.1)
    watchdog.end(watchdog.begin(peers.connection))
    time.sleep(0.35)
    assert not peers.is_cut()
    assert not free.cut


@pytest.mark.parametrize("closed_by", ["psycopg", "the server"])
def test_a_connection_that_is_closed_already_does_not_count_as_cut(
    watchdog: Watchdog, peers: Peers, closed_by: str
) -> None:
    before = total("db_client_connection_cut_total")
    peers.near.close()
    if closed_by == "the server":
        peers.near = socket.socket()  # which is connected to nothing
    DEADLINE.set(time.monotonic())
    lease = watchdog.begin(peers.connection)
    time.sleep(0.25)
    assert (lease.cut, total("db_client_connection_cut_total")) == (False, before)


@pytest.mark.parametrize("begun", ["before", "after"])
def test_the_end_cuts_what_is_in_use_and_what_comes_later(begun: str, peers: Peers) -> None:
    watchdog = Watchdog(leak_threshold=LONG)
    if begun == "after":
        watchdog.stop()
    lease = watchdog.begin(peers.connection)
    if begun == "before":
        assert not lease.cut
        watchdog.stop()
    assert lease.cut
    assert peers.is_cut()


@pytest.mark.parametrize("answered", [False, True])
def test_a_leak_is_reported_once_with_its_route(
    peers: Peers, caplog: pytest.LogCaptureFixture, *, answered: bool
) -> None:
    before = total("db_client_connection_leaks_total")
    watchdog = Watchdog(leak_threshold=0.1)
    watchdog.start()
    with caplog.at_level(logging.WARNING):
        watchdog.begin(peers.connection)
        RECORD.get().duration = 1.0 if answered else 0.0
        until(lambda: caplog.records, "the leak is reported")
        time.sleep(0.35)
    watchdog.stop()
    (report,) = caplog.messages
    assert report.startswith("connection held for 0.")
    assert "by GET /users:" in report
    assert ("never given back" in report) == answered
    assert ("test_a_leak_is_reported_once" in report) == (not answered), "the stack of who holds it"
    assert total("db_client_connection_leaks_total") == before + 1


def test_a_leak_of_a_thread_that_has_ended_is_reported_as_such(peers: Peers, caplog: pytest.LogCaptureFixture) -> None:
    watchdog = Watchdog(leak_threshold=0.05)
    thread = threading.Thread(target=watchdog.begin, args=(peers.connection,))
    thread.start()
    thread.join()
    watchdog.start()
    until(lambda: "the thread has ended" in caplog.text, "the leak is reported")
    watchdog.stop()


def test_it_knows_the_holders_longest_first_and_the_most_at_once(peers: Peers) -> None:
    watchdog = Watchdog(leak_threshold=LONG)
    assert watchdog.high_water() == 0
    first = watchdog.begin(peers.connection)
    RECORD.set(Record("r2", "POST", "/users", route="/users"))
    second = watchdog.begin(peers.connection)
    assert [name for _, name in watchdog.holders()] == ["GET /users", "POST /users"]
    watchdog.end(first)
    assert [watchdog.high_water(), watchdog.high_water()] == [2, 1]
    watchdog.end(second)
    assert watchdog.holders() == []
