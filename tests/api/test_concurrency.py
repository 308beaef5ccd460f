"""Many clients at once: nothing collides, nothing is lost, and no more connections than threads."""

from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import httpx
import pytest

from tests.support.parallel import at_once
from tests.support.postgres import TestDatabase
from tests.support.process import Service

# On a busy machine a sign-up waits longer for a core than a client would; here nobody may be turned away.
PATIENT = {"QUEUE_WAIT": "20", "REQUEST_DEADLINE": "30", "GRACEFUL_SHUTDOWN_TIMEOUT": "40", "WORKER_THREADS": "4"}
NO_LIMIT = httpx.Limits(max_connections=None)

COUNT_CONNECTIONS = """
    SELECT count(*), count(*) FILTER (WHERE state LIKE 'idle in transaction%')
    FROM pg_stat_activity
    WHERE application_name = 'users-service' AND datname = current_database()
"""


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    """A service with four threads and four connections."""
    with Service({**database.environment, **PATIENT}) as service:
        yield service


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    """A client with as many sockets as it needs."""
    with httpx.Client(base_url=service.url, timeout=60, limits=NO_LIMIT) as client:
        yield client


def user(email: str, **fields: Any) -> dict[str, Any]:
    return {"fname": "Ada", "lname": "Lovelace", "email": email, "password": "correct horse", **fields}


def connections(database: TestDatabase) -> tuple[int, int]:
    """Return how many the service has, and how many of them stand idle in a transaction."""
    with database.as_superuser() as conn:
        found = conn.execute(COUNT_CONNECTIONS).fetchone()
        assert found
        return found[0], found[1]


def test_fifty_sign_ups_with_one_email_make_one_user(client: httpx.Client) -> None:
    emails = ["one@example.com", "One@Example.COM", "ONE@EXAMPLE.COM", "oNe@example.com", "one@EXAMPLE.com"] * 10
    answers = at_once([partial(client.post, "/users", json=user(email)) for email in emails])
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"email-taken"}
    assert len(client.get("/users?email=one@example.com").json()) == 1


def test_fifty_sign_ups_with_one_id_make_one_user(client: httpx.Client) -> None:
    answers = at_once(
        [partial(client.post, "/users", json=user(f"id{n}@example.com", id=2_000_000)) for n in range(50)]
    )
    assert Counter(answer.status_code for answer in answers) == {201: 1, 409: 49}
    assert {answer.json()["code"] for answer in answers if answer.status_code == 409} == {"id-taken"}


def test_generated_ids_never_meet_those_that_clients_choose(client: httpx.Client) -> None:
    chosen = [*range(1, 49), 2**31 - 2, 2**31 - 1]
    with_id = [partial(client.post, "/users", json=user(f"chose{n}@example.com", id=n)) for n in chosen]
    without = [partial(client.post, "/users", json=user(f"generated{n}@example.com")) for n in range(50)]
    answers = at_once([call for pair in zip(with_id, without, strict=True) for call in pair])
    assert Counter(answer.status_code for answer in answers) == {201: 100}
    assert len({answer.json()["id"] for answer in answers}) == 100


def test_changes_of_different_fields_at_the_same_moment_are_all_kept(client: httpx.Client) -> None:
    user_id = client.post("/users", json=user("changing@example.com")).json()["id"]
    for number in range(40):
        change = {"fname": f"F{number}", "lname": f"L{number}", "email": f"changing{number}@example.com"}
        calls = [partial(client.patch, f"/users/{user_id}", json={name: value}) for name, value in change.items()]
        assert [answer.status_code for answer in at_once(calls)] == [200] * 3
        found = client.get(f"/users/{user_id}").json()
        assert {name: found[name] for name in change} == change, f"an update was lost in round {number}"


def test_two_hundred_requests_at_once_are_all_served_by_four_threads(client: httpx.Client) -> None:
    answers = at_once([partial(client.get, "/users?limit=20")] * 200)
    assert Counter(answer.status_code for answer in answers) == {200: 200}
