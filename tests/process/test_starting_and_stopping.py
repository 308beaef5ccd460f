"""How the processes of the service begin, change and end: all of them, and nothing lost on the way."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from service.database.pool import Database
from service.database.watchdog import Watchdog
from service.settings import Settings
from service.startup import Startup
from service.web.health import Readiness
from tests.support.checkout import Checkout, copied, descendants, gone, workers
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, free_port, installed
from tests.support.process import CHECKOUT, Service, environment

pytestmark = pytest.mark.usefixtures("forked")  # those of a copy of the checkout are real

EVE = {"id": 7, "fname": "Eve", "lname": "Moneypenny", "email": "eve@example.com", "password": "correct horse"}


@pytest.fixture
def checkout() -> Iterator[Checkout]:
    with copied() as checkout:
        yield checkout


def answer(url: str) -> httpx.Response | None:
    """Ask over a new connection; None when nobody answers."""
    try:
        return httpx.get(url, timeout=2)
    except httpx.TransportError:
        return None


def waits_for_a_lock(database: TestDatabase) -> bool:
    with database.connect() as conn:
        waiting = "SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        return conn.execute(waiting).fetchone() is not None


def test_each_of_four_workers_answers_and_none_outlives_sigterm(checkout: Checkout, database: TestDatabase) -> None:
    with checkout.start(database.environment | {"WORKERS": "4", "WORKER_THREADS": "2"}) as service:
        until(lambda: service.log.count("Application startup complete") == 4, "four workers start")
        four = workers(service)
        assert len(four) == 4
        for chosen in four:
            others = [pid for pid in four if pid != chosen]
            try:
                for pid in others:
                    os.kill(pid, signal.SIGSTOP)
                assert httpx.get(f"{service.url}/users", timeout=10).status_code == 200
            finally:
                for pid in others:
                    os.kill(pid, signal.SIGCONT)
        everyone = descendants(service)
        assert service.stop() == 0
        assert "Traceback" not in service.log
    until(lambda: gone(everyone), "every process ends")
    with database.connect() as conn:
        ours = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        until(lambda: conn.execute(ours).fetchone() == (0,), "every connection ends")


def test_a_worker_that_was_killed_is_replaced(database: TestDatabase) -> None:
    with Service(database.environment | {"WORKERS": "2"}) as service:
        until(lambda: service.log.count("Application startup complete") == 2, "two workers start")
        killed = workers(service)[0]
        os.kill(killed, signal.SIGKILL)
        until(lambda: gone([killed]) and len(workers(service)) == 2, "another worker takes its place")
        assert httpx.get(f"{service.url}/livez", timeout=10).status_code == 200


def applied(service: Service, more_than: int = 0) -> int:
    """Return how often the service applied schema.sql, or 0 when that is not more than `more_than`."""
    count = service.log.count("schema.sql is applied")
    return count if count > more_than else 0


def test_run_serves_the_new_code_after_a_change_and_survives_a_mistake(
    checkout: Checkout, database: TestDatabase
) -> None:
    with checkout.start(database.environment, "run") as service:
        app = checkout.folder / "service" / "app.py"
        code = app.read_text()
        app.write_text(f"{code}\nthis is no Python\n")
        until(lambda: "SyntaxError" in service.log, "the mistake is told")
        app.write_text(code.replace("    return app\n", '    app.title = "Changed"\n    return app\n'))
        document = f"{service.url}/openapi.json"
        until(lambda: (now := answer(document)) and now.json()["info"]["title"] == "Changed", "the new code is served")
        for _ in range(2):  # the second change, too: an editor replaces the file, and a watch on the first one ends
            before = applied(service)
            new = checkout.folder / "new.sql"
            new.write_text(f"{(checkout.folder / 'schema.sql').read_text()}\n-- changed\n")
            new.replace(checkout.folder / "schema.sql")
            until(partial(applied, service, more_than=before), "the schema is applied")
        everyone = descendants(service)
        assert service.stop() == 0
    until(lambda: gone(everyone), "every process ends")


@pytest.mark.parametrize("count", ["1", "2"])
def test_sigterm_lets_a_write_in_flight_be_done_and_answered(cluster: Cluster, count: str) -> None:
    database = cluster.create_database()
    settings = database.environment | {"WORKERS": count, "LOCK_TIMEOUT": "4"}
    with (
        Service(settings) as service,
        database.connect() as conn,
        ThreadPoolExecutor(1) as executor,
    ):
        with conn.transaction():
            conn.execute('LOCK TABLE public."user" IN ACCESS EXCLUSIVE MODE')
            posted = executor.submit(service.client.post, "/users", json=EVE)
            until(lambda: waits_for_a_lock(database), "the request waits for the lock")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: "Shutting down" in service.log, "the shutdown begins")
            assert not posted.done()
            assert service.process.poll() is None
        assert posted.result().status_code == 201
        assert service.process.wait(10) == 0
        assert conn.execute('SELECT id FROM public."user"').fetchall() == [(7,)]
        assert "Traceback" not in service.log


def test_while_it_drains_it_is_not_ready(cluster: Cluster) -> None:
    database = cluster.create_database()
    with (
        Service(database.environment | {"LOCK_TIMEOUT": "4"}) as service,
        database.connect() as conn,
        ThreadPoolExecutor(1) as executor,
    ):
        url = service.url
        with conn.transaction():
            conn.execute('LOCK TABLE public."user" IN ACCESS EXCLUSIVE MODE')
            asked = executor.submit(service.client.get, "/users")
            until(lambda: waits_for_a_lock(database), "the request waits for the lock")
            service.process.send_signal(signal.SIGTERM)
            until(lambda: (ready := answer(f"{url}/readyz")) is None or ready.status_code == 503, "it is not ready")
            assert not asked.done()
        assert asked.result().status_code == 200


@pytest.mark.parametrize("count", ["1", "2"])
def test_for_drain_delay_it_takes_requests_and_says_that_it_drains(database: TestDatabase, count: str) -> None:
    with Service(database.environment | {"WORKERS": count, "DRAIN_DELAY": "60"}) as service:
        until(lambda: service.log.count("Application startup complete") == int(count), "the workers start")
        url = service.url
        service.process.send_signal(signal.SIGTERM)
        until(lambda: "draining" in httpx.get(f"{url}/readyz").text, "new connections see it")
        for _ in range(8):
            assert httpx.get(f"{url}/readyz?exclude=database").json()["failed"] == "draining"
            assert httpx.get(f"{url}/users").status_code == 200
        assert service.client.get("/users").headers["Connection"] == "close", "the client moves to another instance"
        assert service.process.poll() is None
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(10) == 0, "the second SIGTERM ends the wait"
        assert "Traceback" not in service.log


def test_drain_delay_ends_by_itself(database: TestDatabase) -> None:
    with Service(database.environment | {"DRAIN_DELAY": "0.5"}) as service:
        began = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        assert service.process.wait(10) == 0
        assert time.monotonic() - began > 0.5


@pytest.mark.parametrize(("command", "count"), [("serve", "1"), ("serve", "2"), ("run", "1")])
def test_ctrl_c_ends_every_process_without_a_word_of_python(
    checkout: Checkout, database: TestDatabase, command: str, count: str
) -> None:
    with checkout.start(database.environment | {"WORKERS": count}, command) as service:
        everyone = descendants(service)
        os.killpg(service.process.pid, signal.SIGINT)  # as a terminal does
        assert service.process.wait(20) in (0, 130)
        until(lambda: gone(everyone), "every process ends")
        assert "Traceback" not in service.log


@pytest.mark.parametrize(("command", "count"), [("serve", "3"), ("run", "1")])
def test_a_supervisor_that_was_killed_leaves_no_worker_and_a_free_port(
    checkout: Checkout, database: TestDatabase, command: str, count: str
) -> None:
    port = free_port()
    with checkout.start(database.environment | {"WORKERS": count, "PORT": str(port)}, command) as service:
        until(lambda: len(workers(service)) == int(count), "the workers start")
        everyone = descendants(service)
        service.stop(signal.SIGKILL)
        until(lambda: gone(everyone), "every process ends", within=5)
    socket.create_server(("127.0.0.1", port)).close()


def test_it_starts_without_its_database_says_so_and_serves_soon_after_that_arrives() -> None:
    cluster = Cluster(installed()["18"])
    cluster.create()
    service: Service | None = None
    try:
        cluster.start()
        database = cluster.create_database()
        cluster.stop()
        service = Service(database.environment)
        url = service.url
        assert httpx.get(f"{url}/livez").status_code == 200
        ready, users = httpx.get(f"{url}/readyz"), httpx.get(f"{url}/users")
        assert (ready.status_code, ready.json()["failed"]) == (503, "database")
        assert (users.status_code, users.json()["code"]) == (503, "database-unavailable")
        assert httpx.get(f"{url}/readyz?exclude=database").status_code == 200, "the instance itself is ready"
        assert re.search(r"database does not answer.*refused", service.log)
        cluster.start()
        arrived = time.monotonic()
        until(lambda: httpx.get(f"{url}/users").status_code == 200, "users are served", within=2)
        print(f"served {time.monotonic() - arrived:.2f} s after the database arrived")
        assert httpx.get(f"{url}/readyz").status_code == 200
        assert service.stop() == 0
    finally:
        if service:
            service.stop(signal.SIGKILL)
        cluster.remove()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT], ids=lambda how: how.name)
def test_it_can_be_stopped_while_it_waits_for_its_database(how: signal.Signals) -> None:
    nowhere = {"DATABASE_HOSTNAME": "/nowhere", "DATABASE_NAME": "x", "DATABASE_USERNAME": "x"}
    service = Service(nowhere)
    try:
        assert httpx.get(f"{service.url}/livez").status_code == 200
        assert service.stop(how) in (0, 130)
        assert "Traceback" not in service.log
    finally:
        service.stop(signal.SIGKILL)


def test_while_its_database_is_silent_it_lives_and_says_that_it_is_starting() -> None:
    uvicorn = "-m uvicorn --factory service.app:create_app --port 0 --http service.extras.http.protocol:Protocol"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = {"DATABASE_HOSTNAME": "127.0.0.1", "DATABASE_PORT": str(silent.getsockname()[1])}
        settings = {**address, "DATABASE_NAME": "x", "DATABASE_USERNAME": "x", "CONNECT_TIMEOUT": "60"}
        service = Service(settings, argv=[sys.executable, *uvicorn.split()])
        try:
            assert httpx.get(f"{service.url}/livez").status_code == 200
            answer = httpx.get(f"{service.url}/readyz")
            assert (answer.status_code, "starting" in answer.text) == (503, True), answer.text
            assert httpx.get(f"{service.url}/users").json()["code"] == "database-unavailable"
        finally:
            service.stop()


# An ASGI server that leaves SIGTERM as it found it, and receives one.
RUNNER = """
import asyncio, logging, signal, httpx
from service.app import create_app

async def main():
    app = create_app()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    async with app.router.lifespan_context(app), client:
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.05)
        signal.raise_signal(signal.SIGTERM)
        await client.get("/readyz", headers={"X-Request-ID": "after"})

signal.signal(signal.SIGTERM, {handler})
asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("handler", "status", "logged"),
    [
        ("signal.SIG_DFL", -signal.SIGTERM, []),
        ("signal.SIG_IGN", 0, ["[after] GET /readyz 200"]),
        ("lambda *_: logging.getLogger('service').info('handled')", 0, ["handled", "[after] GET /readyz 503"]),
    ],
    ids=["default", "ignored", "handled"],
)
def test_sigterm_does_under_every_server_what_that_server_has_set(
    database: TestDatabase, handler: str, status: int, logged: list[str]
) -> None:
    command = [sys.executable, "-c", RUNNER.replace("{handler}", handler)]
    env = environment(database.environment)
    ended = subprocess.run(command, check=False, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == status, ended.stdout + ended.stderr
    assert re.findall(r"handled|\[after\] GET /readyz \d+", ended.stdout) == logged


def test_a_handler_of_sigterm_that_python_cannot_restore_is_left_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one that a server written in C has installed: getsignal() returns None for it."""
    settings = Settings()
    database = Database(size=1, watchdog=Watchdog(leak_threshold=1))
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(signal, "getsignal", lambda _number: None)
    Startup(settings.server, settings, (), database, Readiness()).drain_on_sigterm(0)
    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) is before


def test_workers_that_cannot_start_stop_the_service_with_an_exit_status_that_says_so(database: TestDatabase) -> None:
    """Here, because they may write no file: no metrics for all workers."""
    command = ["sh", "-c", f"ulimit -f 0; exec {sys.executable} -m service serve"]
    env = environment({**database.environment, "PORT": "0", "WORKERS": "2"})
    ended = subprocess.run(command, check=False, cwd=CHECKOUT, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 3, ended.stdout
    assert "failed to start" in ended.stdout
