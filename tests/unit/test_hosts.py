"""Which of several hosts leads, as their answers change."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from psycopg.conninfo import conninfo_to_dict

from service.database.sessions import Session
from service.database.watchdog import Watchdog
from service.extras.hosts import PERIOD, SILENCE, TICK, Host, WatchedDatabase
from tests.support.polling import until
from tests.support.postgres import free_port

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
        Host(SESSION, {"host": name, "port": "5432"}, timeline)
        for name, timeline in zip(("one", "two"), timelines, strict=True)
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


def test_a_second_way_to_the_leader_is_no_new_leader(
    database: WatchedDatabase, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = database.hosts
    until(lambda: database._others == {second.address}, "the first host leads")  # noqa: SLF001
    second.timeline = first.timeline
    until(lambda: not database._others, "both ways are used")  # noqa: SLF001
    time.sleep(3 * TICK)
    assert not caplog.records


def test_a_host_that_does_not_answer_is_left_out_while_another_one_does() -> None:
    database = watched(WatchedDatabase, FIRST, "")
    first, second = database.hosts
    first.answered_at -= PERIOD + SILENCE  # whatever its watch waits for
    assert "host=two port" in database._server(lambda: SERVER)  # noqa: SLF001
    second.answered_at -= PERIOD + SILENCE
    assert "host=one,two" in database._server(lambda: SERVER)  # noqa: SLF001


def test_a_host_that_refuses_at_once_is_tried_again_and_one_that_is_silent_is_not() -> None:
    """A server that was stopped is up again before the watch knows."""
    database = watched(WatchedDatabase, FIRST, "")
    stopped = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for host, port in zip(database.hosts, (free_port(), silent.getsockname()[1]), strict=True):
            host.parameters = {"host": "127.0.0.1", "port": str(port)}
            threading.Thread(target=host.ask_until, args=[stopped], daemon=True).start()
        until(lambda: all(host.is_silent for host in database.hosts), "neither answers")
        server = database._server(lambda: SERVER)  # noqa: SLF001
        stopped.set()
    assert conninfo_to_dict(server)["port"] == database.hosts[0].parameters["port"]


def test_a_host_that_is_promoted_at_this_moment_is_connected_to() -> None:
    assert "host=one port" in watched(Promoted, FIRST, FIRST)._server(lambda: SERVER)  # noqa: SLF001


def test_a_primary_of_an_older_timeline_is_left_out() -> None:
    assert "host=two port" in watched(WatchedDatabase, FIRST, SECOND)._server(lambda: SERVER)  # noqa: SLF001
    assert "host=one,two" in watched(WatchedDatabase, FIRST, "")._server(lambda: SERVER)  # noqa: SLF001
