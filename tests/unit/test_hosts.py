"""Which of several hosts leads, as their answers change."""

import threading
import time
from collections.abc import Iterator

import pytest

from service.database.sessions import Session
from service.database.watchdog import Watchdog
from service.extras.hosts import TICK, Host, WatchedDatabase
from tests.support.polling import until

SERVER = "host=one,two port=5432"
SESSION = Session(lambda: SERVER, {}, "")
FIRST, SECOND = "00000001", "00000002"  # timelines


class Promoted(WatchedDatabase):
    """A database whose first host is promoted when somebody asks for the newest timeline."""

    @property
    def newest(self) -> str:
        self.hosts[0].timeline = SECOND
        return super().newest


def watched(kind: type[WatchedDatabase], *timelines: str) -> WatchedDatabase:
    database = kind(1, Watchdog(leak_threshold=1))
    database.hosts = tuple(
        Host(SESSION, number, (name, 5432), timeline)
        for number, (name, timeline) in enumerate(zip(("one", "two"), timelines, strict=True))
    )
    return database


@pytest.fixture
def database() -> Iterator[WatchedDatabase]:
    database = watched(WatchedDatabase, FIRST, "")
    thread = threading.Thread(target=database._follow_leader)  # noqa: SLF001 - without a server
    thread.start()
    yield database
    database.close()
    thread.join()


def test_connections_are_replaced_when_another_host_leads_and_not_while_none_does(
    database: WatchedDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = database.hosts
    until(lambda: database._others == {second.address}, "the first host leads")  # noqa: SLF001
    first.timeline = ""
    time.sleep(3 * TICK)
    second.timeline = SECOND
    until(lambda: database._others == {first.address}, "the second host leads")  # noqa: SLF001
    database.close()
    assert [record.args for record in caplog.records] == [(SECOND,)]


def test_a_host_that_is_promoted_at_this_moment_is_connected_to() -> None:
    assert "host=one port" in watched(Promoted, FIRST, FIRST)._server(lambda: SERVER)  # noqa: SLF001


def test_a_primary_of_an_older_timeline_is_left_out() -> None:
    assert "host=two port" in watched(WatchedDatabase, FIRST, SECOND)._server(lambda: SERVER)  # noqa: SLF001
    assert "host=one,two" in watched(WatchedDatabase, FIRST, "")._server(lambda: SERVER)  # noqa: SLF001
