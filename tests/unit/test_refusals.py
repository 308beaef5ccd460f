"""Why a connection cannot be made."""

import resource
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from psycopg import OperationalError, errors

from service.database import libpq
from service.database.refusals import explain


class Closing:
    """A server that closes every connection."""

    attempts = 0

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                peer, _ = self.listener.accept()
                self.attempts += 1
                peer.recv(1000)
                peer.close()

    @property
    def conninfo(self) -> str:
        return f"host=127.0.0.1 port={self.listener.getsockname()[1]} connect_timeout=2 sslmode=disable"


@pytest.fixture
def server() -> Iterator[Closing]:
    server = Closing()
    yield server
    server.listener.close()


def test_the_same_failure_is_explained_by_one_attempt_only(server: Closing) -> None:
    first = explain(server.conninfo, OperationalError("broken"))
    assert first.started
    assert [explain(server.conninfo, OperationalError("broken")) for _ in range(3)] == [first] * 3
    assert server.attempts == 1
    explain(server.conninfo, OperationalError("broken otherwise"))
    assert server.attempts == 2


def test_a_failure_with_a_sqlstate_needs_no_attempt(server: Closing) -> None:
    assert explain(server.conninfo, errors.AdminShutdown("the end")).sqlstate == "57P01"
    assert server.attempts == 0


def test_a_process_without_descriptors_still_explains(server: Closing) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        assert explain(server.conninfo, OperationalError("no file")).text == "no file"
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("timeout", [-1, 0, 1, 9])
def test_any_timeout_leaves_time_for_an_answer(timeout: int) -> None:
    assert libpq.connect_timeout(f"connect_timeout={timeout}") >= 2
