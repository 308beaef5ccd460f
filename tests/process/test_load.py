"""`make load`: it loads this service and nothing else, tells what the service counted, and leaves nobody behind."""

import asyncio
import os
import pty
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest

from tests.load import clients
from tests.load.clients import Address, Load, Phase
from tests.support.polling import until
from tests.support.postgres import TestDatabase, free_port
from tests.support.process import CHECKOUT, Service, environment
from tests.support.scrape import scrape

DURATION = "http_server_request_duration_seconds"
PLACES = 6  # requests that the threads and the queue below hold, and so many clients can never be refused
CROWD = 18  # clients past saturation


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    small = {"WORKER_THREADS": "2", "QUEUE_LENGTH": "4"}
    with Service(database.environment | small) as service:
        until(lambda: pool(service)["workers"], "the worker tells of itself")
        yield service


def command(*options: str) -> list[str]:
    return [sys.executable, "-m", "tests.load", *options]


def run(*options: str, settings: dict[str, str] | None = None, shell: str = "exec") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", f'{shell} "$@"', "bash", *command(*options)],
        cwd=CHECKOUT, env=environment(settings or {}),
        capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip


def refused(*options: str, settings: dict[str, str] | None = None) -> str:
    """Return the one line with which it ends when it has nothing to do."""
    ended = run(*options, settings=settings)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def pool(service: Service) -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = httpx.get(f"{service.url}/pool").json()
    return told


ROW = re.compile(r"^ *(steady|overload|recovery) +(\S+) +(\S+) +\S+ +\S+ +\S+ +(\S+) +\S+ +(\S+) *$", re.MULTILINE)


def summary(output: str) -> dict[str, dict[str, int]]:
    """Return the numbers of each phase, as the table at the end has them."""
    names = ("clients", "accepted", "refused", "failed")
    return {
        name: {key: int(text.replace(",", "")) for key, text in zip(names, row, strict=True)}
        for name, *row in ROW.findall(output)
    }


def counted(service: Service) -> Counter[str]:
    """Return what the service counted of requests to /users and below, by method and status."""
    counts: Counter[str] = Counter()
    for (name, pairs), number in scrape(service).items():
        labels = dict(pairs)
        if name == f"{DURATION}_count" and labels["http_route"].startswith("/users"):
            counts[f"{labels['http_request_method']} {labels['http_response_status_code']}"] += int(number)
    return counts


def users(database: TestDatabase) -> int:
    with database.connect() as conn:
        row = conn.execute('SELECT count(*) FROM public."user"').fetchone()
    assert row
    return int(row[0])


def test_it_is_accepted_then_refused_then_accepted_and_the_service_counted_the_same(
    service: Service, database: TestDatabase
) -> None:
    before = counted(service)
    ended = run("--url", service.url, "--seconds=3")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(f"watch it at {service.url}/pool\n")
    phases = summary(ended.stdout)
    assert {name: phase["clients"] for name, phase in phases.items()} == {
        "steady": PLACES, "overload": CROWD, "recovery": PLACES,
    }  # fmt: skip
    assert phases["steady"]["refused"] == 0
    assert phases["overload"]["refused"] > 0
    for phase in phases.values():
        assert phase["accepted"] > 0
        assert phase["failed"] == 0
    made = re.search(r"^users made and deleted again: (\d+)$", ended.stdout, re.MULTILINE)
    assert made
    assert int(made[1]) > 0

    total = sum(phase["accepted"] + phase["refused"] for phase in phases.values()) + int(made[1])
    until(lambda: (counted(service) - before).total() == total, "the service has counted the same")
    since = counted(service) - before
    assert since["GET 503"] + since["POST 503"] == sum(phase["refused"] for phase in phases.values())
    assert since["POST 201"] == since["DELETE 204"] == int(made[1])
    assert users(database) == 0


def test_ctrl_c_under_the_load_leaves_no_user_behind(service: Service, database: TestDatabase) -> None:
    before = pool(service)["totals"]["refused"]
    argv = command("--url", service.url, "--seconds=4")
    settings = environment({})
    with subprocess.Popen(argv, cwd=CHECKOUT, env=settings, stdout=subprocess.PIPE, text=True) as process:
        until(lambda: users(database) and pool(service)["totals"]["refused"] > before, "the load is at its worst")
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert summary(output)["overload"]["accepted"] > 0
    assert users(database) == 0


def test_in_a_terminal_bars_show_how_far_it_is(service: Service) -> None:
    ours, its = pty.openpty()
    settings = environment({"TERM": "xterm"})
    argv = command("--url", service.url, "--seconds=1")
    with closing(os.fdopen(ours, "rb", 0)) as terminal:
        process = subprocess.Popen(argv, cwd=CHECKOUT, env=settings, stdout=its, stderr=its)
        os.close(its)
        output = b""
        try:
            while read := terminal.read(65536):
                output += read
        except OSError:  # as Linux has it when the other end is closed
            pass
        assert process.wait(30) == 0
    for name in ("steady", "overload", "recovery"):
        assert re.search(rf"{name}.*━━━━.* accepted, [\d,]+ refused", output.decode()), output.decode()


@pytest.mark.parametrize(("limit", "crowd"), [("-Sn", CROWD), ("-n", 6)])
def test_it_has_as_many_clients_as_files_may_be_open(service: Service, limit: str, crowd: int) -> None:
    ended = run("--url", service.url, "--seconds=1", shell=f"ulimit {limit} 70; exec")
    phases = summary(ended.stdout)
    assert phases["overload"]["clients"] == crowd
    assert ("ulimit" in ended.stdout) == (crowd < CROWD)
    assert sum(phase["failed"] for phase in phases.values()) == 0


def test_a_service_that_does_not_run_is_reported_in_one_line() -> None:
    port = str(free_port())
    told = refused(settings={"PORT": port})
    assert "make run" in told
    assert f"http://127.0.0.1:{port}" in told


@pytest.mark.parametrize(
    "url", ["http://192.0.2.1:8000", "http://example.com", "https://127.0.0.1:8000", "127.0.0.1:8000", "http://[::1"]
)
def test_what_is_not_this_machine_is_not_loaded(url: str) -> None:
    assert url.removeprefix("http://").removesuffix(":8000") in refused("--url", url)


def test_a_service_that_listens_on_another_address_only_is_not_loaded() -> None:
    assert "192.0.2.1 is not this machine" in refused(settings={"HOST": "192.0.2.1"})


def test_a_service_that_listens_everywhere_is_asked_here() -> None:
    assert "127.0.0.1" in refused(settings={"HOST": "0.0.0.0", "PORT": str(free_port())})


@pytest.mark.parametrize(("status", "hint"), [(404, "is it this service"), (401, "it wants an API key")])
def test_a_server_that_shows_no_pool_gets_one_request_and_no_load(status: int, hint: str) -> None:
    asked = []

    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Other) as server:
        Thread(target=server.serve_forever).start()
        told = refused("--url", f"http://127.0.0.1:{server.server_port}")
        server.shutdown()
    assert hint in told
    assert asked == ["/pool"]


def test_a_server_that_never_answers_is_reported_in_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "nothing answers" in refused("--url", f"http://127.0.0.1:{server.getsockname()[1]}")


def test_a_service_that_hangs_ends_the_load_and_the_users_in_doubt_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clients, "PATIENCE", 0.2)
    monkeypatch.setattr(clients, "CLEANING", 0.3)
    monkeypatch.setattr(clients, "SHARES", (0, 0, 0, 1))
    phase = Phase("hung", seconds=0.1, clients=3, thinks=0)

    async def hang() -> Load:
        with socket.create_server(("127.0.0.1", 0)) as server:
            load = Load(Address("127.0.0.1", server.getsockname()[1]))
            load.begin(phase)
            await asyncio.to_thread(until, lambda: len(load.doubtful) == 3, "each client asks for something")
            await load.end()
            await load.clean()
        return load

    load = asyncio.run(asyncio.wait_for(hang(), 3))
    assert phase.failed == {"no answer in 0.2 s": 3}
    assert load.left.startswith("users that may have been left behind: 3, with the emails load-")
