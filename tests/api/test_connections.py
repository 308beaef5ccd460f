"""Every connection comes back, whatever happens to the request that borrowed it, or to the connection itself."""

import socket
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx
import psycopg
import pytest

from tests.support.parallel import at_once
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service

SETTINGS = {"WORKER_THREADS": "4", "LOCK_TIMEOUT": "0.3", "STATEMENT_TIMEOUT": "0.6", "QUEUE_WAIT": "5"}

SELECT_STATES = """
    SELECT state FROM pg_stat_activity WHERE application_name = 'users-service' AND datname = current_database()
"""
SELECT_PIDS = SELECT_STATES.replace("state", "pid", 1)

# Inserting this user takes as long as a statement may take, and longer.
SLOW = "slow@example.com"
CREATE_SLOWNESS = f"""
    CREATE FUNCTION sleep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(20); RETURN NEW; END';
    CREATE TRIGGER slowness BEFORE INSERT ON "user" FOR EACH ROW WHEN (NEW.email = '{SLOW}') EXECUTE FUNCTION sleep()
"""


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    """A service with four connections and little time."""
    with Service({**database.environment, **SETTINGS}) as service:
        with database.connect() as conn:
            conn.execute(CREATE_SLOWNESS)
        assert service.client.post("/users", json=user("ada@example.com", id=1)).status_code == 201
        until(lambda: states(database) == ["idle"] * 4, "four connections are open")
        yield service


def user(email: str, **fields: Any) -> dict[str, Any]:
    return {"fname": "Ada", "lname": "Lovelace", "email": email, "password": "correct horse", **fields}


def states(database: TestDatabase) -> list[str]:
    with database.as_superuser() as conn:
        return [state for (state,) in conn.execute(SELECT_STATES).fetchall()]


def pids(database: TestDatabase) -> set[int]:
    with database.as_superuser() as conn:
        return {pid for (pid,) in conn.execute(SELECT_PIDS).fetchall()}


@contextmanager
def locked(database: TestDatabase) -> Iterator[psycopg.Connection]:
    """Keep everybody from the table while the block runs."""
    with database.connect() as conn, conn.transaction():
        conn.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
        yield conn


def test_after_errors_of_every_kind_the_same_four_connections_stand_idle(
    service: Service, client: httpx.Client, database: TestDatabase
) -> None:
    before = pids(database)
    errors = [
        lambda: client.get("/users/999"),
        lambda: client.delete("/users/999"),
        lambda: client.patch("/users/999", json={"fname": "Grace"}),
        lambda: client.post("/users", json=user("ada@example.com")),
        lambda: client.post("/users", json=user("new@example.com", id=1)),
        lambda: client.post("/users/authenticate", json={"email": "ada@example.com", "password": "wrong"}),
        lambda: client.post("/users", json=user(SLOW)),
        lambda: client.get("/users/x"),
    ]
    statuses = Counter(answer.status_code for answer in at_once(errors * 4))
    assert statuses == {404: 12, 409: 8, 401: 4, 504: 4, 422: 4}
    with locked(database):
        statuses = Counter(answer.status_code for answer in at_once([lambda: client.get("/users")] * 12))
    assert statuses == {504: 12}
    until(lambda: states(database) == ["idle"] * 4, f"four idle connections, not {states(database)}")
    assert pids(database) == before
    assert "Traceback" not in service.log


def test_clients_that_hang_up_while_they_wait_leave_no_connection_behind(
    service: Service, client: httpx.Client, database: TestDatabase
) -> None:
    before = pids(database)
    url = urlsplit(service.url)
    with locked(database):
        for number in range(12):  # more than there are threads: some hang up in the queue
            with socket.create_connection((url.hostname, url.port)) as raw:
                raw.sendall(f"GET /users?limit={number + 1} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
                raw.sendall(b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        until(lambda: states(database).count("active") == 4, "the requests wait for the table")
    until(lambda: states(database) == ["idle"] * 4, "every connection is given back")
    assert pids(database) == before
    assert [answer.status_code for answer in at_once([lambda: client.get("/users")] * 20)] == [200] * 20
    assert "Traceback" not in service.log


def test_no_request_meets_a_connection_that_died_while_it_was_idle(
    service: Service, client: httpx.Client, database: TestDatabase
) -> None:
    for _ in range(5):
        before = pids(database)
        with database.as_superuser() as conn:
            conn.execute(f"SELECT pg_terminate_backend(pid) FROM ({SELECT_PIDS}) AS pooled")
        until(lambda before=before: not before & pids(database), "the connections are gone")  # type: ignore[misc]
        answers = at_once([lambda: client.get("/users")] * 12 + [lambda: client.patch("/users/1", json={"fname": "B"})])
        assert Counter(answer.status_code for answer in answers) == {200: 13}
        until(lambda: states(database) == ["idle"] * 4, "there are four connections again")
    assert "Traceback" not in service.log


def cut_off(database: TestDatabase, request: Future[httpx.Response]) -> None:
    """End the session of the one request that waits for the table."""
    with database.as_superuser() as conn:
        query = f"SELECT pg_terminate_backend(pid) FROM ({SELECT_PIDS} AND wait_event_type = 'Lock') AS waiting"
        until(lambda: conn.execute(query).fetchall(), f"the request waits for the table: {request}")


def test_a_read_whose_connection_breaks_is_tried_once_more(client: httpx.Client, database: TestDatabase) -> None:
    with ThreadPoolExecutor() as executor:
        with locked(database):
            request = executor.submit(client.get, "/users/1")
            cut_off(database, request)
        answer = request.result(timeout=30)
    assert answer.status_code == 200, answer.text


def test_a_write_whose_connection_breaks_is_not_tried_again(client: httpx.Client, database: TestDatabase) -> None:
    with ThreadPoolExecutor() as executor:
        with locked(database):
            request = executor.submit(client.patch, "/users/1", json={"fname": "Twice"})
            cut_off(database, request)
        answer = request.result(timeout=30)
    assert (answer.status_code, answer.json()["code"]) == (503, "database-unavailable")
    assert client.get("/users/1").json()["fname"] != "Twice"
