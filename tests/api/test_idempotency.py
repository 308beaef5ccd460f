"""Idempotency-Key: a write that is sent again is carried out once, and answered as the first time."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from secrets import token_hex
from typing import Any

import httpx
import pytest

from service.web.idempotency import BATCH, DELETE_OUTDATED
from tests.process.test_schema import waiters
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.relay import Relay
from tests.support.scrape import counted
from tests.support.users import create, new_user

WRITES = ["POST", "POST with an id", "PUT", "PATCH", "DELETE"]
VARYING = {"x-request-id", "date", "idempotency-replayed"}


@pytest.fixture(scope="module", params=["direct", "pooler"])
def service(request: pytest.FixtureRequest, database: TestDatabase) -> Iterator[Service]:
    """The service, directly and as behind a pooler, where a message holds no parameters."""
    with (
        Relay(database.cluster.port, refuses=request.param == "pooler") as relay,
        Service({**database.environment, "DATABASE_PORT": str(relay.port)}) as service,
    ):
        yield service


def prepare_write(client: httpx.Client, write: str) -> dict[str, Any]:
    """Return a request that can be sent again, as arguments of httpx."""
    key = {"Idempotency-Key": token_hex(16)}
    if write.startswith("POST"):
        given = {"id": int(token_hex(3), 16) + 1} if "id" in write else {}
        return {"method": "POST", "url": "/users", "json": new_user(**given), "headers": key}
    body = {"PUT": new_user(), "PATCH": {"fname": "Augusta"}, "DELETE": None}[write]
    return {"method": write, "url": f"/users/{create(client)['id']}", "json": body, "headers": key}


def is_replay(first: httpx.Response, again: httpx.Response) -> None:
    """Assert that `again` is the same answer as `first`, byte for byte, and says so."""
    assert first.is_success, first.text
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert (again.status_code, again.content) == (first.status_code, first.content)
    kept = [{k: v for k, v in each.headers.items() if k not in VARYING} for each in (first, again)]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("write", WRITES)
def test_a_write_that_is_sent_again_is_answered_as_the_first_time(client: httpx.Client, write: str) -> None:
    request = prepare_write(client, write)
    first = client.request(**request)
    path = first.headers.get("Location", request["url"])
    is_replay(first, client.request(**request))
    if write != "DELETE":
        after = client.get(path)
        assert after.headers["ETag"] == first.headers["ETag"], "it was done once"
        client.patch(path, json={"lname": "Byron"})
        is_replay(first, client.request(**request))
        assert client.get(path).json()["lname"] == "Byron", "the later change stays"
        client.delete(path)
    is_replay(first, client.request(**request))
    is_problem(client.get(path), 404, "user-not-found")


@pytest.mark.parametrize("write", WRITES)
def test_of_two_at_once_the_second_waits_for_the_first_and_replays_it(
    service: Service, client: httpx.Client, database: TestDatabase, write: str
) -> None:
    request = prepare_write(client, write)
    with database.connect() as conn, ThreadPoolExecutor() as threads:
        with conn.transaction():
            conn.execute("LOCK TABLE idempotency_key IN SHARE MODE")  # both have to wait before they can be done
            sent = [threads.submit(httpx.request, **{**request, "url": service.url + request["url"]}) for _ in "12"]
            until(lambda: waiters(database) == 2, "both wait: for the table, or for each other")
        answers = sorted((each.result() for each in sent), key=lambda each: "idempotency-replayed" in each.headers)
    is_replay(*answers)


def test_a_replay_is_logged_and_counted(service: Service, client: httpx.Client) -> None:
    before = counted(service, "idempotency_replays_total")
    request = prepare_write(client, "POST")
    created = client.request(**request).json()["id"]
    replayed = client.request(**request)
    line = f"[{replayed.headers['X-Request-ID']}] POST /users 201"
    until(
        lambda: any(line in each and each.endswith(f"on {created} replayed") for each in service.log.splitlines()), line
    )
    until(lambda: counted(service, "idempotency_replays_total") == before + 1, "the replay is counted")


def test_a_key_in_quotes_or_to_a_path_with_a_slash_is_the_same(client: httpx.Client) -> None:
    request = prepare_write(client, "PATCH")
    first = client.request(**request)
    quoted = {"Idempotency-Key": f'"{request["headers"]["Idempotency-Key"]}"'}
    is_replay(first, client.request(**{**request, "url": f"{request['url']}/", "headers": quoted}))


def test_a_key_with_another_request_is_refused(client: httpx.Client) -> None:
    request, other = prepare_write(client, "PATCH"), create(client)
    first = client.request(**request)
    for change in (
        {"json": {"fname": "Grace"}},
        {"method": "DELETE", "json": None},
        {"url": f"/users/{other['id']}"},
        {"url": "/users/999999"},
        {"method": "POST", "url": "/users", "json": new_user()},
        {"method": "POST", "url": "/users", "json": new_user(email=other["email"])},
    ):
        refused = client.request(**{**request, **change})
        (error,) = is_problem(refused, 422, "idempotency-key-reused")["errors"]
        assert error["loc"] == ["header", "idempotency-key"]
    assert client.get(f"/users/{other['id']}").json() == other
    is_replay(first, client.request(**request))


def test_a_refused_write_keeps_nothing_and_its_key_can_be_sent_again(client: httpx.Client) -> None:
    taken = create(client)
    request = prepare_write(client, "POST")
    request["json"]["email"] = taken["email"]
    is_problem(client.request(**request), 409, "email-taken")
    stale = prepare_write(client, "PATCH")
    stale["headers"]["If-Match"] = '"1"'
    is_problem(client.request(**stale), 412, "precondition-failed")
    client.delete(f"/users/{taken['id']}")
    first = client.request(**request)
    is_replay(first, client.request(**request))
    stale["headers"]["If-Match"] = "*"
    is_replay(client.request(**stale), client.request(**stale))


def test_a_repeat_is_replayed_though_its_precondition_fails_by_now(client: httpx.Client) -> None:
    request = prepare_write(client, "PATCH")
    request["headers"]["If-Match"] = client.get(request["url"]).headers["ETag"]
    is_replay(client.request(**request), client.request(**request))


def test_a_deletion_that_fails_at_the_commit_keeps_nothing(client: httpx.Client, database: TestDatabase) -> None:
    request = prepare_write(client, "DELETE")
    with database.connect() as conn:
        conn.execute('CREATE TABLE needs (id bigint REFERENCES "user" DEFERRABLE INITIALLY DEFERRED)')
        conn.execute("INSERT INTO needs VALUES (%s)", [request["url"].rpartition("/")[2]])
        is_problem(client.request(**request), 409, "user-referenced")
        conn.execute("DROP TABLE needs")
    is_replay(client.request(**request), client.request(**request))


@pytest.mark.parametrize("key", ["", "a b", '"a', "k" * 256])
@pytest.mark.parametrize("write", WRITES)
def test_a_malformed_key_is_refused(client: httpx.Client, write: str, key: str) -> None:
    request = prepare_write(client, write)
    request["headers"] = {"Idempotency-Key": key}
    (error,) = is_problem(client.request(**request), 422, "invalid-request")["errors"]
    assert error["loc"] == ["header", "idempotency-key"]


def test_two_keys_in_one_request_are_refused(client: httpx.Client) -> None:
    request = prepare_write(client, "POST")
    request["headers"] = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]
    is_problem(client.request(**request), 422, "invalid-request")


def test_outdated_outcomes_are_deleted_in_batches_and_others_stay(database: TestDatabase) -> None:
    insert = """
        INSERT INTO idempotency_key (key_hash, fingerprint, status, id, created_at)
        SELECT sha256(n::text::bytea), '', 204, n, now() - interval '23 h' - n * interval '1 h'
        FROM generate_series(0, 1) AS n, generate_series(1, %s) AS copies
    """.replace("n::text::bytea", "(n || ' ' || copies)::bytea")
    with database.connect() as conn:
        conn.execute("DELETE FROM idempotency_key")
        conn.execute(insert, [BATCH + 1])
        counts = [conn.execute(DELETE_OUTDATED).fetchone() for _ in range(3)]
        assert counts == [(BATCH,), (1,), (0,)]
        left = conn.execute("SELECT count(*), max(id) FROM idempotency_key").fetchone()
        assert left == (BATCH + 1, 0)
        conn.execute("DELETE FROM idempotency_key")
