"""Clients that send each write with a key until it is acknowledged: it is made exactly once, whatever breaks."""

import os
import random
import signal
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from secrets import token_hex
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest

from tests.faults.conftest import SHORT
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase, free_port, installed
from tests.support.process import Service
from tests.support.proxy import Proxy
from tests.support.replication import promote, start_standby
from tests.support.users import new_user

WRITES = int(os.environ.get("EXACTLY_ONCE_WRITES", "480"))
CLIENTS = 8 if WRITES < 1000 else 16
CHANGES = 20  # of each user, between its creation and its deletion
KINDS = 9  # of faults
PAUSE = 0.2 if WRITES < 1000 else 1.0  # seconds between two faults
VARYING = {"x-request-id", "date", "idempotency-replayed"}

DEADLINE = 1.0  # seconds
SETTINGS = {
    **SHORT,
    "QUEUE_WAIT": "0.5",
    "LOCK_TIMEOUT": "0.3",
    "STATEMENT_TIMEOUT": "0.5",
    "LEAK_THRESHOLD": "0.8",
    "REQUEST_DEADLINE": f"{DEADLINE:g}",
}

TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'users-service'"

# Counts what is done to the table itself, whoever does it.
COUNT_WRITES = """
    CREATE TABLE made (operation text);
    CREATE FUNCTION count_write() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN INSERT INTO made VALUES (TG_OP); RETURN NULL; END';
    CREATE TRIGGER count_write AFTER INSERT OR UPDATE OR DELETE ON "user"
        FOR EACH ROW EXECUTE FUNCTION count_write()
"""


class Faults:
    """A service, a primary and its standby, and the wires between them, each of which breaks again and again."""

    def __init__(self, primary: Cluster, stack: ExitStack) -> None:
        self.primary = primary
        stack.callback(self._remove_primary)
        self.database = primary.create_database()
        self.standby = start_standby(primary)
        stack.callback(self._remove_standby)
        self.counts: Counter[str] = Counter()
        self._stack = stack
        self._wires = [stack.enter_context(Proxy(each.port)) for each in (self.primary, self.standby)]
        hosts = ",".join(f"127.0.0.1:{wire.port}" for wire in self._wires)
        url = f"postgresql://{self.database.name}:{quote(PASSWORD)}@{hosts}/{self.database.name}"
        self._settings = {**SETTINGS, "DATABASE_URL": url, "PORT": str(free_port())}
        self.service = self._start()
        self.url = self.service.url
        with self.database.connect() as conn:
            conn.execute(COUNT_WRITES)

    def _remove_primary(self) -> None:
        self.primary.remove()

    def _remove_standby(self) -> None:
        self.standby.remove()

    def _start(self) -> Service:
        return self._stack.enter_context(Service(self._settings))

    def kill_the_service(self) -> None:
        self.service.stop(signal.SIGKILL)
        self.service = self._start()

    def stop_postgresql_at_once(self) -> None:
        self.primary.stop(signal.SIGQUIT)
        self.primary.start()

    def restart_postgresql(self) -> None:
        self.primary.stop(signal.SIGINT)
        self.primary.start()

    def terminate_backends(self) -> None:
        with self.database.as_superuser() as admin:
            admin.execute(TERMINATE)

    def cut_connections(self) -> None:
        for wire in self._wires:
            wire.cut()

    def reset_in_mid_reply(self) -> None:
        before = self._damaged()
        for wire in self._wires:
            wire.truncate = wire.reset = True
        until(lambda: self._damaged() > before + 8, "replies are cut off by a reset")
        for wire in self._wires:
            wire.truncate = wire.reset = False

    def _damaged(self) -> int:
        return sum(wire.damaged for wire in self._wires)

    def freeze_postgresql(self) -> None:
        frozen = self.primary.freeze()
        time.sleep(1.5 * DEADLINE)
        self.primary.thaw(frozen)

    def fail_over(self) -> None:
        self.primary.stop(signal.SIGQUIT)
        self._replace_primary()

    def fail_over_from_a_frozen_primary(self) -> None:
        """Whoever promotes a standby makes sure first that the former primary never goes on."""
        frozen = self.primary.freeze()
        time.sleep(1.5 * DEADLINE)
        for pid in frozen[1:]:
            os.kill(pid, signal.SIGKILL)
        self.primary.process.send_signal(signal.SIGQUIT)
        self.primary.thaw(frozen[:1])  # to end: it has no session left, and starts none
        self.primary.process.wait(60)
        self._replace_primary()

    def _replace_primary(self) -> None:
        """Promote the standby, and make a new one in the place of the former primary."""
        promote(self.standby)
        former, self.primary = self.primary, self.standby
        former.remove()
        self.database = TestDatabase(self.primary, self.database.name)
        self.standby = start_standby(self.primary, former.port)

    def run(self, over: threading.Event) -> None:
        faults: list[Callable[[], None]] = [
            self.kill_the_service, self.stop_postgresql_at_once, self.reset_in_mid_reply, self.fail_over,
            self.terminate_backends, self.freeze_postgresql, self.cut_connections, self.restart_postgresql,
            self.fail_over_from_a_frozen_primary,
        ]  # fmt: skip
        while True:
            for fault in faults:
                if over.wait(PAUSE):
                    return
                fault()
                self.counts[fault.__name__] += 1


@pytest.fixture
def faults() -> Iterator[Faults]:
    primary = Cluster(installed()["18"])
    primary.create()
    primary.start()
    with ExitStack() as stack:
        yield Faults(primary, stack)


class Client:
    """Creates users, changes and deletes them."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._random = random.Random(seed)
        self.sent = self.replays = self.reset = 0
        self.writes: Counter[str] = Counter()

    def run(self, count: int, faults: Faults) -> None:
        while self.writes.total() < count or len(faults.counts) < KINDS:
            with httpx.Client(base_url=self._url, timeout=5) as self._http:
                self.one_user()

    def one_user(self) -> None:
        created = self.write("POST", "/users", json=new_user())
        path, tag = created.headers["Location"], created.headers["ETag"]
        for number in range(CHANGES):
            tag = self.write("PATCH", path, json={"fname": f"Ada {number}"}, headers={"If-Match": tag}).headers["ETag"]
        self.write("DELETE", path)

    def write(self, method: str, path: str, **content: Any) -> httpx.Response:
        """Send a write until it is acknowledged, and sometimes once more; return the answer."""
        headers = {"Idempotency-Key": token_hex(16), **content.pop("headers", {})}
        if self._random.random() < 0.05:
            self.send_and_reset(method, path, headers, content.get("json"))
        first = self.until_acknowledged(method, path, headers=headers, **content)
        self.writes[method] += 1
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
            time.sleep(0.05)
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
    faults: Faults, record_figure: Callable[[str], None]
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
    sent, replays, reset = (sum(getattr(each, name) for each in clients) for name in ("sent", "replays", "reset"))
    writes = Counter[str]()
    for client in clients:
        writes += client.writes
    with faults.database.connect() as conn:
        assert conn.execute('SELECT count(*) FROM "user"').fetchone() == (0,), "every user was deleted"
        kept = conn.execute("SELECT count(*) FROM idempotency_key").fetchone()
        made = conn.execute("SELECT operation, count(*) FROM made GROUP BY operation").fetchall()
    assert dict(made) == {"INSERT": writes["POST"], "UPDATE": writes["PATCH"], "DELETE": writes["DELETE"]}, "each once"
    assert kept == (writes.total(),), "one outcome for each write"
    record_figure(
        f"exactly once: {writes.total()} writes, each made once, in {sent + reset} requests, {replays} of them"
        f" replayed; {faults.counts.total()} faults: {dict(faults.counts)}, {reset} connections reset"
    )


def test_a_replay_is_acknowledged_only_when_the_standby_has_the_write(faults: Faults) -> None:
    """Until then a failover would lose it: after a crash, the primary shows a write that its standby never got."""
    client, key, user = faults.service.client, {"Idempotency-Key": token_hex(16)}, new_user()

    def send() -> httpx.Response:
        return client.post("/users", json=user, headers=key)

    faults.standby.stop(signal.SIGQUIT)
    assert send().status_code == 504
    faults.stop_postgresql_at_once()
    until(lambda: client.get("/users", params={"email": user["email"]}).json(), "the primary shows the user")
    repeats: list[int] = []

    def is_carried_out() -> bool:
        repeats.append(send().status_code)
        return repeats[-1] != 503

    until(is_carried_out, "the stall of before the restart is forgotten")
    assert repeats[-1] == 504
    faults.standby.start()
    until(lambda: send().is_success, "the write is acknowledged")
    assert send().headers["Idempotency-Replayed"] == "true"
