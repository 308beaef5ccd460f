"""The log: JSON in production, text in development, nothing said a thousand times."""

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from service.extras.log_quota import CHEAP_LINES
from tests.support.polling import until
from tests.support.postgres import Cluster
from tests.support.process import Service
from tests.support.raw_http import Answer, connect

ADA: dict[str, Any] = {
    "id": 1,
    "fname": "Ada",
    "lname": "Lovelace",
    "email": "ada@example.com",
    "password": "correct horse",
}
JSON = {"LOG_FORMAT": "json"}


@pytest.fixture(scope="module")
def service(cluster: Cluster) -> Iterator[Service]:
    with Service(cluster.create_database().environment | JSON) as service:
        yield service


def lines(service: Service) -> list[dict[str, Any]]:
    """Return the lines that are objects: all but the first few, which the command line prints."""
    return [json.loads(line) for line in service.log.splitlines() if line.startswith("{")]


def line_of(service: Service, request_id: str) -> dict[str, Any]:
    """Return the one line of a request."""

    def found() -> list[dict[str, Any]]:
        return [line for line in lines(service) if line["request_id"] == request_id]

    until(found, "its line is there")
    (line,) = found()
    return line


def test_a_request_has_one_line_with_what_it_took(service: Service) -> None:
    answer = service.client.post("/users?x=somebody@example.com", json=ADA, headers={"X-Request-ID": "sign-up"})
    assert answer.status_code == 201
    line = line_of(service, "sign-up")
    told = {name: line[name] for name in ("level", "method", "path", "route", "status")}
    assert told == {"level": "info", "method": "POST", "path": "/users", "route": "/users", "status": 201}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert 0 < line["held"] < line["seconds"] < 30
    assert 0 <= line["queued"] < line["seconds"]
    assert 0 <= line["queued_to_hash"] < line["seconds"]
    assert "code" not in line


def test_the_line_of_a_problem_has_its_code(service: Service) -> None:
    service.client.get("/users/999", headers={"X-Request-ID": "nobody"})
    assert line_of(service, "nobody")["code"] == "user-not-found"
    service.client.get('/nothing/"\\%0a', headers={"X-Request-ID": "nowhere"})
    line = line_of(service, "nowhere")
    assert (line["code"], line["route"], line["status"]) == ("not-found", "", 404)
    assert "queued" not in line, "it waited for nothing"


def test_every_line_is_an_object_also_those_of_uvicorn(cluster: Cluster) -> None:
    with Service(cluster.create_database().environment | JSON) as service:
        service.client.get("/users")
    told = [line for line in service.log.splitlines() if line and not line.startswith("schema.sql")]
    assert {json.loads(line)["logger"] for line in told} >= {"uvicorn.error", "service.request"}


def test_text_says_the_same_for_eyes(cluster: Cluster) -> None:
    with Service(cluster.create_database().environment | {"LOG_FORMAT": "text"}) as service:
        service.client.get("/users/999", headers={"X-Request-ID": "nobody"})
    times = r"[\d.]+ ms \([\d.]+ queued, [\d.]+ held\)"
    assert re.search(rf"INFO    \[nobody\] GET /users/999 404 {times} user-not-found\n", service.log)


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_form_shows_a_password_or_who_somebody_is(form: str, cluster: Cluster) -> None:
    database = cluster.create_database()
    with Service(database.environment | {"LOG_FORMAT": form}) as service:
        assert service.client.post("/users", json=ADA).status_code == 201
        assert service.client.post("/users", json=ADA).status_code == 409
        service.client.get("/users", params={"email": ADA["email"]})
        service.client.post("/users/authenticate", json={"email": ADA["email"], "password": "battery staple"})
    for secret in (ADA["password"], "battery staple", ADA["email"], "Lovelace", "argon2", database.name + "@"):
        assert str(secret) not in service.log


@pytest.mark.parametrize("form", ["json", "text"])
def test_a_long_path_is_cut(form: str, cluster: Cluster) -> None:
    with Service(cluster.create_database().environment | {"LOG_FORMAT": form}) as service:
        for path in ("x" * 30_000, "%0A" * 10_000, '"' * 30_000):
            with connect(service.url) as peer:
                peer.sendall(f"GET /{path} HTTP/1.1\r\nHost: x\r\nX-Request-ID: long\r\n\r\n".encode())
                assert Answer(peer.recv(65536)).status_code == 404
        until(lambda: service.log.count("not-found") == 3, "their lines are there")
    own = [line for line in service.log.splitlines() if "long" in line]
    assert max(map(len, own)) < 1000
    assert all("..." in line and (form == "text" or json.loads(line)) for line in own)


def test_a_flood_of_what_is_cheap_to_answer_has_few_lines_and_hides_no_line_of_what_is_served(
    service: Service, record_figure: Callable[[str], None]
) -> None:
    batches, size = 150, 20
    logged = len(service.log)
    began = time.monotonic()
    with connect(service.url) as peer:
        for _ in range(batches):
            peer.sendall(b"GET /flood HTTP/1.1\r\nHost: x\r\n\r\n" * size)
            received = b""
            while received.count(b"HTTP/1.1 404 ") < size:
                received += peer.recv(65536)
    took = time.monotonic() - began
    for _ in range(2 * CHEAP_LINES):
        assert service.client.get("/users/424242").status_code == 404

    def since() -> list[dict[str, Any]]:
        return [json.loads(line) for line in service.log[logged:].splitlines()]

    def counted() -> int:
        others = [re.fullmatch(r".* second: not-found ([\d,]+)", line.get("message", "")) for line in since()]
        return sum(int(each[1].replace(",", "")) for each in others if each)

    until(lambda: counted() + sum(line.get("path") == "/flood" for line in since()) == batches * size, "all are told")
    own = sum(line.get("path") == "/flood" for line in since())
    until(
        lambda: sum(line.get("path") == "/users/424242" for line in since()) == 2 * CHEAP_LINES,
        "what was served is told",
    )
    record_figure(
        f"a flood of {batches * size / took:.0f} requests a second to nowhere: {own / batches / size:.1%} have lines"
    )
    assert own <= CHEAP_LINES * (took + 2)
