import gc
import socket
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.database.sessions import connect_to_host


@pytest.fixture
def silent_port() -> Iterator[int]:
    """The port of a server that accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_connection_that_fails_leaves_no_socket_behind(silent_port: int) -> None:
    conninfo = f"host=127.0.0.1,127.0.0.1 port={silent_port} target_session_attrs=read-write"
    gc.collect()
    gc.disable()
    try:
        before = open_files()
        with pytest.raises(psycopg.OperationalError):
            connect_to_host(psycopg.connect, conninfo, connect_timeout=2)
        assert open_files() == before
    finally:
        gc.enable()
