"""Clients that send each write with a key until it is acknowledged: it is made exactly once, whatever breaks."""

import os
import random
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from secrets import token_hex
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.faults.conftest import SHORT
from tests.support.postgres import Cluster, TestDatabase, free_port
from tests.support.process import Service
from tests.support.relay import Relay
from tests.support.users import new_user

WRITES = int(os.environ.get("EXACTLY_ONCE_WRITES", "480"))
CLIENTS = 16
CHANGES = 20  # of each user, between its creation and its deletion
KINDS = 5  # of faults
PAUSE = 0.3  # seconds between two faults
VARYING = {"x-request-id", "date", "idempotency-replayed"}

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'users-service'"


class Faults:
    """A service, its connection to PostgreSQL and PostgreSQL, each of which breaks again and again."""

    def __init__(self, cluster: Cluster, database: TestDatabase) -> None:
        self.cluster = cluster
        self.database = database
        self.counts: dict[str, int] = {}
        self._stack = ExitStack()
        self._relay = self._stack.enter_context(Relay(cluster.port, refuses=False))
        self._settings = {
            **database.environment, **SHORT, "DATABASE_PORT": str(self._relay.port), "PORT": str(free_port()),
        }  # fmt: skip
        self.service = self._start()
        self.url = self.service.url

    def _start(self) -> Service:
        return self._stack.enter_context(Service(self._settings))

    def kill_the_service(self) -> None:
        self.service.stop(signal.SIGKILL)
        self.service = self._start()

    def stop_postgresql_at_once(self) -> None:
        self.cluster.stop(signal.SIGQUIT)
        self.cluster.start()

    def restart_postgresql(self) -> None:
        self.cluster.stop(signal.SIGINT)
        self.cluster.start()

    def terminate_backends(self) -> None:
        with self.database.as_superuser() as admin:
            admin.execute(TERMINATE)

    def cut_connections(self) -> None:
        self._relay.cut()

    def run(self, over: threading.Event) -> None:
        faults: list[Callable[[], None]] = [
            self.kill_the_service, self.stop_postgresql_at_once, self.restart_postgresql,
            self.terminate_backends, self.cut_connections,
        ]  # fmt: skip
        while True:
            for fault in faults:
                if over.wait(PAUSE):
                    return
                fault()
                self.counts[fault.__name__] = self.counts.get(fault.__name__, 0) + 1

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def faults(victim: Cluster, database: TestDatabase) -> Iterator[Faults]:
    found = Faults(victim, database)
    yield found
    found.close()


class Client:
    """Creates users, changes and deletes them."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._random = random.Random(seed)
        self.writes = self.sent = self.replays = self.reset = 0

    def run(self, count: int, faults: Faults) -> None:
        while self.writes < count or len(faults.counts) < KINDS:
            with httpx.Client(base_url=self._url, timeout=5) as self._http:
                self.one_user()

    def one_user(self) -> None:
        created = self.write("POST", "/users", json=new_user())
        path, version = created.headers["Location"], int(created.headers["ETag"].strip('"'))
        for number in range(1, CHANGES + 1):
            changed = self.write("PATCH", path, json={"fname": f"Ada {number}"})
            assert int(changed.headers["ETag"].strip('"')) == version + number, "a change was lost, or made twice"
        self.write("DELETE", path)

    def write(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a write until it is acknowledged, and sometimes once more; return the answer."""
        headers = {"Idempotency-Key": token_hex(16)}
        if self._random.random() < 0.05:
            self.send_and_reset(method, path, headers, content.get("json"))
        first = self.until_acknowledged(method, path, headers=headers, **content)
        self.writes += 1
        if self._random.random() < 0.2:
            again = self.until_acknowledged(method, path, headers=headers, **content)
            assert again.headers["Idempotency-Replayed"] == "true"
            assert (again.status_code, again.content) == (first.status_code, first.content)
            kept = [{k: v for k, v in each.headers.items() if k not in VARYING} for each in (first, again)]
            assert kept[0] == kept[1]
        return first

    def until_acknowledged(self, method: str, path: str, **content: Any) -> httpx.Response:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            self.sent += 1
            with suppress(httpx.TransportError):
                answer = self._http.request(method, path, **content)
                if answer.is_success:
                    self.replays += "Idempotency-Replayed" in answer.headers
                    return answer
                assert answer.status_code in (503, 504), answer.text
            time.sleep(0.02)
        raise AssertionError(f"{method} {path} was not acknowledged within 60 s")

    def send_and_reset(self, method: str, path: str, headers: dict[str, str], body: Any) -> None:
        """Send the write once, and reset the connection while it is under way."""
        request = httpx.Request(method, f"{self._url}{path}", headers=headers, json=body)
        lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in request.headers.items()), "", ""]
        to = urlsplit(self._url)
        with suppress(OSError), socket.create_connection((to.hostname, to.port), timeout=1) as connection:
            connection.sendall("\r\n".join(lines).encode() + request.content)
            time.sleep(self._random.random() * 0.005)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.reset += 1


def test_every_write_with_a_key_is_made_exactly_once_whatever_breaks(
    faults: Faults, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    clients = [Client(faults.url, seed) for seed in range(CLIENTS)]
    over = threading.Event()
    with ThreadPoolExecutor(CLIENTS + 1) as threads:
        breaking = threads.submit(faults.run, over)
        running = [threads.submit(client.run, WRITES // CLIENTS, faults) for client in clients]
        try:
            for each in running:
                each.result()
        finally:
            over.set()
        breaking.result()
    with database.connect() as conn:
        assert conn.execute('SELECT count(*) FROM "user"').fetchone() == (0,), "every user was deleted"
        kept = conn.execute("SELECT count(*) FROM idempotency_key").fetchone()
    writes = sum(client.writes for client in clients)
    assert kept == (writes,), "one outcome for each write"
    sent, replays, reset = (sum(getattr(each, name) for each in clients) for name in ("sent", "replays", "reset"))
    record_figure(
        f"exactly once: {writes} writes, each made once, in {sent + reset} requests, {replays} of them replayed;"
        f" {sum(faults.counts.values())} faults of {len(faults.counts)} kinds, {reset} connections reset"
    )
