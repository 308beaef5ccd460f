"""Clients that ignore Retry-After, or ask for what costs no thread: what they leave to others.

Everything is measured in turns with what it is compared with, and the median of the ratios counts: the machine changes.
"""

import asyncio
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from statistics import median
from typing import NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest

from tests.bench import database
from tests.bench.rude import READ, USERS, RudeClients, drive
from tests.support.peer import Peer
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.system.reconnecting import reconnecting

pytestmark = pytest.mark.alone

ROUNDS = 3
FEW = (16, 64)  # clients: the peak is at one of these
HONEST = 16  # clients that read users, beside the others
SHORT, LONG = 0.4, 0.8  # seconds of a measurement: of few clients, and of many
CONNECTING = 0.7  # seconds until many clients have come
STARTING = 1.0  # seconds until those in a process of their own have

LOGIN_EVERY = 0.2  # seconds
LOGINS = 8  # in each round
PATIENCE = 3.0  # seconds until a login must be answered
ACCOUNT = {"email": "honest@example.com", "password": "correct horse"}


def request(method: str, path: str, *headers: str, body: str = "", kind: str = "application/json") -> str:
    if body:
        # {n} becomes eight digits.
        headers = (*headers, f"Content-Type: {kind}", f"Content-Length: {len(body.replace('{n}', '12345678'))}")
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", body])


def login(email: str, password: str) -> str:
    return request("POST", "/users/authenticate", body=json.dumps({"email": email, "password": password}))


CLOSE = "Connection: close"
READ_AND_CLOSE = request("GET", "/users/{id}", CLOSE)
READ_BY_HTTP_1_0 = READ.replace("HTTP/1.1", "HTTP/1.0")
CHANGE = request("PATCH", "/users/{id}", body='{"fname": "Ada"}')


@pytest.fixture(scope="module")
def filled(cluster: Cluster) -> TestDatabase:
    return database.create(cluster, USERS)


@pytest.fixture(scope="module")
def served(filled: TestDatabase) -> Iterator[Service]:
    """The service with its default settings."""
    with Service(filled.environment) as service:
        drive(service.url, READ, 64, SHORT)  # to warm up
        yield service


class Crowd(NamedTuple):
    clients: int
    request: str
    few: str = READ  # what the peak is measured with
    goal: float = 0.75
    least: float = 0.5
    ramp: float = CONNECTING


CROWDS = {
    "1,000 clients": Crowd(1000, READ, goal=0.90, least=0.6),
    "4,000 clients": Crowd(4000, READ, goal=0.90, least=0.6, ramp=2.0),
    "500 clients of a web page": Crowd(500, request("GET", "/users/{id}", "Origin: https://x.example")),
    "500 clients that change users": Crowd(500, CHANGE, few=CHANGE),
    "500 clients that connect for each request": Crowd(500, READ_AND_CLOSE, few=READ_AND_CLOSE),
}


@pytest.mark.parametrize("name", CROWDS)
def test_clients_that_ignore_retry_after_leave_the_goodput_where_it_was(
    served: Service, record_figure: Callable[[str], None], name: str
) -> None:
    compare_with_the_peak(served, record_figure, name, CROWDS[name])


def test_with_a_short_queue_they_leave_the_goodput_where_it_was_too(
    filled: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Service({**filled.environment, "QUEUE_LENGTH": "16"}) as service:
        drive(service.url, READ, 16, SHORT)  # to warm up
        compare_with_the_peak(service, record_figure, "1,000 clients and a queue of 16", Crowd(1000, READ))


def test_those_that_speak_http_1_0_leave_the_goodput_where_it_was_too(
    filled: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Service({**filled.environment, "ANONYMOUS_ACCESS": "read"}) as service:
        drive(service.url, READ, 64, SHORT)  # to warm up
        crowd = Crowd(500, READ_BY_HTTP_1_0, few=READ_BY_HTTP_1_0)
        compare_with_the_peak(service, record_figure, "500 clients that speak HTTP/1.0", crowd)


def compare_with_the_peak(service: Service, record_figure: Callable[[str], None], name: str, crowd: Crowd) -> None:
    peaks: list[float] = []
    goods: list[float] = []
    refused: list[float] = []
    for _ in range(ROUNDS):
        settle(service)
        peaks.append(max(drive(service.url, crowd.few, few, SHORT, ramp=0.1).goodput for few in FEW))
        found = drive(service.url, crowd.request, crowd.clients, LONG, ramp=crowd.ramp)
        goods.append(found.goodput)
        refused.append(found.other / found.seconds)
    ratio = median(good / peak for good, peak in zip(goods, peaks, strict=True))
    figure = (
        f"{name} that ignore Retry-After: goodput {ratio:.2f} of the peak"
        f" ({median(goods):.0f} of {median(peaks):.0f} a second), {median(refused):.0f} a second refused"
    )
    record_figure(figure)
    assert ratio > crowd.least, f"{figure}; the goal is {crowd.goal}"


def settle(service: Service) -> None:
    """Wait until nothing is left of the last clients."""

    def answers() -> bool:
        with suppress(httpx.TransportError):
            return httpx.get(f"{service.url}/users/1", timeout=0.5).status_code == 200
        return False

    until(answers, "the service has come to rest")


class Flood(NamedTuple):
    clients: int
    request: str


FLOODS = {
    "64 on /livez": Flood(64, request("GET", "/livez")),
    "64 on an unknown path": Flood(64, request("GET", "/nothing")),
    "64 with a wrong method": Flood(64, request("DELETE", "/users")),
    "64 with a wrong media type": Flood(64, request("POST", "/users", body="{}", kind="text/plain")),
    "64 with an invalid query": Flood(64, request("GET", "/users?limit=x")),
    "64 on /metrics": Flood(64, request("GET", "/metrics")),
    "64 on a script of the documentation": Flood(64, request("GET", "/docs/assets/swagger-ui-bundle.js")),
    "64 that connect for each /livez": Flood(64, request("GET", "/livez", CLOSE)),
    "64 that connect for each unknown path": Flood(64, request("GET", "/nothing", CLOSE)),
    "1,000 on /livez": Flood(1000, request("GET", "/livez")),
}


@pytest.mark.parametrize("name", FLOODS)
def test_requests_that_need_no_thread_leave_reads_most_of_what_they_had(
    served: Service, record_figure: Callable[[str], None], name: str
) -> None:
    flood, alone, beside, theirs = FLOODS[name], [], [], []
    for _ in range(ROUNDS):
        settle(served)
        alone.append(drive(served.url, READ, HONEST, SHORT, ramp=0.1).goodput)
        with RudeClients(served.url, flood.request, flood.clients) as clients:
            beside.append(drive(served.url, READ, HONEST, SHORT, ramp=0.4).goodput)
            counts = clients.stop()
            theirs.append((counts.good + counts.other) / counts.seconds)
    ratio = median(part / whole for part, whole in zip(beside, alone, strict=True))
    figure = (
        f"{HONEST} clients that read beside {name}: {ratio:.2f} of what they get alone"
        f" ({median(beside):.0f} of {median(alone):.0f} a second; the others get {median(theirs):.0f})"
    )
    record_figure(figure)
    assert ratio > 0.4, f"{figure}; the goal is 0.6"


def test_clients_that_connect_again_without_saying_so_leave_reads_most_of_what_they_had(
    served: Service, record_figure: Callable[[str], None]
) -> None:
    """Their next connection has to wait for what the last one cost."""
    alone, beside = [], []
    for _ in range(ROUNDS):
        settle(served)
        alone.append(drive(served.url, READ, HONEST, SHORT, ramp=0.1).goodput)
        with reconnecting(served.url, request("GET", "/livez"), 64):
            beside.append(drive(served.url, READ, HONEST, LONG, ramp=STARTING).goodput)
    ratio = median(part / whole for part, whole in zip(beside, alone, strict=True))
    figure = (
        f"{HONEST} clients that read beside 64 that connect again without saying so: {ratio:.2f} of what they get alone"
        f" ({median(beside):.0f} of {median(alone):.0f} a second)"
    )
    record_figure(figure)
    assert ratio > 0.4, f"{figure}; the goal is 0.6"


GUESSES = {
    "for one email": login("user1@example.com", "wrong password"),
    "for an email each": login("user{n}@example.com", "wrong password"),
}


@pytest.mark.parametrize("name", GUESSES)
def test_a_thousand_clients_that_guess_passwords_keep_out_neither_reads_nor_logins(
    served: Service, record_figure: Callable[[str], None], name: str
) -> None:
    served.client.post("/users", json={"fname": "Ada", "lname": "Lovelace", **ACCOUNT})
    assert served.client.post("/users/authenticate", json=ACCOUNT).status_code == 200
    alone: list[float] = []
    beside: list[float] = []
    statuses: list[int] = []
    for _ in range(ROUNDS):
        settle(served)
        alone.append(drive(served.url, READ, HONEST, SHORT, ramp=0.1).goodput)
        with (
            RudeClients(served.url, GUESSES[name], 1000),
            RudeClients(served.url, READ, HONEST, ramp=CONNECTING) as reads,
        ):
            statuses += asyncio.run(log_in(served.url))
            beside.append(reads.stop().goodput)
    ratio = median(part / whole for part, whole in zip(beside, alone, strict=True))
    share = statuses.count(200) / len(statuses)
    figure = (
        f"1,000 clients that guess passwords {name}: {HONEST} others read {ratio:.2f} of what they get alone"
        f" ({median(beside):.0f} of {median(alone):.0f} a second), {share:.2f} of the honest logins are answered 200"
        f" within {PATIENCE:g} s"
    )
    record_figure(figure)
    assert ratio > 0.4, f"{figure}; the goal is 0.6"
    assert share >= 0.5, figure


async def log_in(url: str) -> list[int]:
    """Log in again and again, each time over a new connection; return the statuses, 0 where none came in time."""
    content = login(**ACCOUNT).encode()
    address = urlsplit(url)

    async def once(number: int) -> int:
        await asyncio.sleep(CONNECTING / 2 + number * LOGIN_EVERY)
        with suppress(TimeoutError, OSError, AssertionError):  # AssertionError: Peer's, of a closed connection
            async with asyncio.timeout(PATIENCE):
                peer = await Peer.to((address.hostname or "", address.port or 0))
                try:
                    await peer.send(content)
                    return (await peer.answer()).status
                finally:
                    peer.leave()
        return 0

    return await asyncio.gather(*(once(number) for number in range(LOGINS)))
