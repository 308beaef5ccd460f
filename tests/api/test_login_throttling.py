"""Logins that fail for one email, known or not, make the next one wait: all workers and instances together."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service
from tests.support.users import User, create, new_user

pytestmark = pytest.mark.real_hashes

LONGER = "UPDATE failed_login SET retry_at = retry_at - interval '1 hour'"
SELECT_WAITERS = """
    SELECT count(*) FROM pg_locks WHERE locktype = 'transactionid' AND NOT granted
"""
AGAIN = "UPDATE failed_login SET retry_at = now()"  # the wait is over, the failures are not forgotten


def login(client: httpx.Client, email: str, password: str = "wrong horse") -> httpx.Response:
    return client.post("/users/authenticate", json={"email": email, "password": password})


def fail(client: httpx.Client, email: str, times: int = 5) -> None:
    with ThreadPoolExecutor(times) as executor:
        answers = list(executor.map(lambda _: login(client, email), range(times)))
    assert [answer.status_code for answer in answers] == [401] * times


@pytest.fixture
def user(client: httpx.Client) -> User:
    return create(client)


@pytest.fixture(autouse=True)
def no_failures(client: httpx.Client, database: TestDatabase) -> Iterator[None]:  # noqa: ARG001 - makes the table
    yield
    run(database, "DELETE FROM failed_login")


def run(database: TestDatabase, statement: str) -> None:
    with database.connect() as conn:
        conn.execute(statement)


def test_after_five_failures_even_the_right_password_has_to_wait(client: httpx.Client, user: User) -> None:
    fail(client, user["email"])
    refused = login(client, user["email"].upper(), "correct horse")
    assert (refused.status_code, refused.json()["code"]) == (429, "too-many-attempts")
    assert refused.headers["retry-after"] == "5"


def test_an_unknown_email_is_refused_with_the_same_words(client: httpx.Client, user: User) -> None:
    answers = []
    for email in (user["email"], new_user()["email"]):
        fail(client, email)
        answers.append(login(client, email))
    assert answers[0].content == answers[1].content
    assert set(answers[0].headers) == set(answers[1].headers)
    assert [answer.status_code for answer in answers] == [429, 429]


def test_each_further_failure_doubles_the_wait_up_to_fifteen_minutes(
    client: httpx.Client, database: TestDatabase, user: User
) -> None:
    fail(client, user["email"])
    waits = []
    for failures in (5, 6, 11, 12, 10_000):
        run(database, f"UPDATE failed_login SET failures = {failures}, retry_at = now()")
        fail(client, user["email"], 1)
        waits.append(int(login(client, user["email"]).headers["retry-after"]))
    assert waits == [10, 20, 640, 900, 900]


def test_a_wait_ends_when_it_was_to_end_whatever_comes_meanwhile(
    client: httpx.Client, database: TestDatabase, user: User
) -> None:
    fail(client, user["email"])
    for _ in range(50):
        assert login(client, user["email"]).status_code == 429
    with database.connect() as conn:
        found = conn.execute("SELECT failures, retry_at < now() + interval '5 s' FROM failed_login").fetchall()
    assert found == [(5, True)]
    run(database, AGAIN)
    assert login(client, user["email"], "correct horse").status_code == 200


def test_a_success_clears_the_failures(client: httpx.Client, user: User) -> None:
    for _ in range(2):
        fail(client, user["email"], 4)
        assert login(client, user["email"], "correct horse").status_code == 200
    fail(client, user["email"], 4)


def test_failures_are_forgotten_and_their_rows_are_swept(
    client: httpx.Client, database: TestDatabase, user: User
) -> None:
    fail(client, user["email"])
    fail(client, new_user()["email"], 1)
    run(database, LONGER)
    fail(client, user["email"], 1)
    with database.connect() as conn:
        assert conn.execute("SELECT failures FROM failed_login").fetchall() == [(1,)]


def test_no_email_stands_in_the_table(client: httpx.Client, database: TestDatabase, user: User) -> None:
    fail(client, user["email"], 1)
    with database.connect() as conn:
        found = conn.execute("SELECT length(email_hash), f::text FROM failed_login AS f").fetchone()
    assert found
    assert found[0] == 32
    assert user["email"] not in found[1]


def test_parallel_logins_compute_at_most_six_hashes(service: Service, database: TestDatabase, user: User) -> None:
    """On three instances. Each hash is answered 401."""
    with (
        Service(database.environment) as second,
        Service(database.environment) as third,
        httpx.Client(limits=httpx.Limits(max_connections=64), timeout=60) as client,
        ThreadPoolExecutor(64) as executor,
    ):
        body = {"email": user["email"], "password": "wrong horse"}
        urls = [f"{each.url}/users/authenticate" for each in (service, second, third)]
        jobs = [executor.submit(client.post, urls[number % 3], json=body) for number in range(400)]
        statuses = [job.result().status_code for job in jobs]
    assert statuses.count(401) <= 6
    assert statuses.count(401) + statuses.count(429) + statuses.count(503) == 400
    assert statuses.count(429) > 200


def test_a_login_that_meets_the_last_free_failure_is_refused(
    client: httpx.Client, database: TestDatabase, user: User
) -> None:
    """It began before that one was counted, and waits for its row."""
    fail(client, user["email"], 1)
    with database.connect() as conn, ThreadPoolExecutor() as executor:
        with conn.transaction():
            conn.execute("UPDATE failed_login SET failures = 5, retry_at = now() + interval '5 s'")
            late = executor.submit(login, client, user["email"], "correct horse")
            until(lambda: conn.execute(SELECT_WAITERS).fetchone() == (1,), "it waits for the row")
        refused = late.result()
    assert (refused.status_code, refused.headers.get("retry-after")) == (429, "5")


def test_a_table_of_failures_that_was_dropped_is_an_outage_for_logins_only(
    client: httpx.Client, database: TestDatabase, user: User
) -> None:
    run(database, "ALTER TABLE failed_login RENAME TO elsewhere")
    try:
        assert login(client, user["email"], "correct horse").json()["code"] == "database-unavailable"
        assert client.get(f"/users/{user['id']}").status_code == 200
    finally:
        run(database, "ALTER TABLE elsewhere RENAME TO failed_login")
    assert login(client, user["email"], "correct horse").status_code == 200


def test_a_refusal_takes_no_hash(client: httpx.Client, user: User) -> None:
    fail(client, user["email"])
    start = monotonic()
    for _ in range(20):
        assert login(client, user["email"]).status_code == 429
    assert monotonic() - start < 20 * 0.1
