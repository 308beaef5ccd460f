import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
from psycopg import OperationalError

from service.users.passwords import DUMMY_HASH
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.users import create, new_user

IMPATIENT = {
    "WORKER_THREADS": "1",
    "QUEUE_LENGTH": "1",
    "QUEUE_WAIT": "0.3",
    "LOCK_TIMEOUT": "1",
    "STATEMENT_TIMEOUT": "1.5",
    "LEAK_THRESHOLD": "1.7",
    "REQUEST_DEADLINE": "2",
}

PIDS = "SELECT pid FROM pg_stat_activity WHERE usename = %s AND application_name = 'users-service'"
WAITERS = f"{PIDS} AND wait_event_type = 'Lock'"
END_SESSIONS = f"SELECT pg_terminate_backend(pid, 5000) FROM ({PIDS}) AS service"


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    """On the cluster of the run: nothing here hurts it."""
    return cluster.create_database()


@pytest.fixture(scope="module")
def impatient(database: TestDatabase) -> Iterator[Service]:
    """A service with one thread and one place in its queue, which waits for nothing for long."""
    with Service({**database.environment, **IMPATIENT}) as service:
        yield service


@pytest.fixture(scope="module")
def own_cluster(cluster: Cluster) -> Iterator[Cluster]:
    """A small PostgreSQL for this module alone, to be filled and stopped."""
    with Cluster(cluster.programs, {"max_connections": "8"}) as own:
        yield own


@pytest.fixture(scope="module")
def own_database(own_cluster: Cluster) -> TestDatabase:
    return own_cluster.create_database()


@pytest.fixture(scope="module")
def own_service(own_database: TestDatabase) -> Iterator[Service]:
    with Service({**own_database.environment, "WORKER_THREADS": "1"}) as service:
        yield service


@contextmanager
def table_locked(database: TestDatabase) -> Iterator[None]:
    with database.connect() as conn, conn.transaction():
        conn.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
        yield


@contextmanager
def stuck_request(service: Service, database: TestDatabase) -> Iterator[None]:
    """Keep a thread and a connection of the service busy with a request that waits for the table."""
    with database.as_superuser() as admin, ThreadPoolExecutor() as threads, table_locked(database):
        stuck = threads.submit(service.client.get, "/users")
        until(lambda: admin.execute(WAITERS, (database.name,)).fetchall(), "a request waits for the table")
        yield
        is_problem(stuck.result(), 504, "deadline-exceeded")


def serves_again(service: Service) -> None:
    until(lambda: service.client.get("/users").status_code == 200, "the service serves again")


def test_a_request_that_waits_too_long_for_a_thread_is_refused(impatient: Service, database: TestDatabase) -> None:
    with stuck_request(impatient, database):
        response = impatient.client.get("/users")
    is_problem(response, 503, "overloaded")
    assert 0.3 <= response.elapsed.total_seconds() < 0.9
    serves_again(impatient)


def test_a_request_that_finds_the_queue_full_is_refused_at_once(impatient: Service, database: TestDatabase) -> None:
    with stuck_request(impatient, database), ThreadPoolExecutor(4) as threads:
        responses = list(threads.map(lambda _: httpx.get(f"{impatient.url}/users"), range(4)))  # a connection each
    for response in responses:
        is_problem(response, 503, "overloaded")
    elapsed = sorted(response.elapsed.total_seconds() for response in responses)
    assert elapsed[2] < 0.3 <= elapsed[3], "three are refused at once, one waits in the queue"
    serves_again(impatient)


def test_a_refused_request_did_nothing(impatient: Service, database: TestDatabase) -> None:
    user = new_user()
    with stuck_request(impatient, database):
        is_problem(impatient.client.post("/users", json=user), 503, "overloaded")
    assert impatient.client.get("/users", params={"email": user["email"]}).json() == []


def test_a_statement_that_waits_too_long_for_a_lock_is_stopped(impatient: Service, database: TestDatabase) -> None:
    with table_locked(database):
        response = impatient.client.get("/users")
    is_problem(response, 504, "deadline-exceeded")
    assert 1 <= response.elapsed.total_seconds() < 1.5


def test_a_statement_that_runs_too_long_is_stopped_and_undone(impatient: Service, database: TestDatabase) -> None:
    user = new_user()
    with database.connect() as conn:
        conn.execute("""
            CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(60); RETURN NEW; END';
            CREATE TRIGGER slow BEFORE INSERT ON "user" FOR EACH ROW EXECUTE FUNCTION slow()
        """)
        response = impatient.client.post("/users", json=user)
        conn.execute("DROP FUNCTION slow CASCADE")
    assert "Nothing was done" in is_problem(response, 504, "deadline-exceeded")["detail"]
    assert 1.5 <= response.elapsed.total_seconds() < 2
    assert impatient.client.get("/users", params={"email": user["email"]}).json() == []


def test_a_request_on_a_frozen_server_ends_at_its_deadline(impatient: Service, database: TestDatabase) -> None:
    with database.as_superuser() as admin:
        ((pid,),) = admin.execute(PIDS, (database.name,)).fetchall()
    os.kill(pid, signal.SIGSTOP)
    try:
        response = impatient.client.get("/users")
    finally:
        os.kill(pid, signal.SIGCONT)
    assert "may or may not" in is_problem(response, 504, "deadline-exceeded")["detail"]
    assert 1.9 <= response.elapsed.total_seconds() < 3
    serves_again(impatient)


def test_a_password_that_takes_too_long_to_check_is_given_up_at_the_deadline(
    impatient: Service, database: TestDatabase
) -> None:
    """Its hash may be a costly one from elsewhere; or all cores are busy, and hashing stands back."""
    user = create(impatient.client, fname="Costly")
    costly = DUMMY_HASH.replace("t=2,", "t=400,")  # 4 s of a core
    with database.connect() as conn:
        conn.execute('UPDATE "user" SET password_hash = %s WHERE id = %s', (costly, user["id"]))
    credentials = {"email": user["email"], "password": "correct horse"}
    response = impatient.client.post("/users/authenticate", json=credentials)
    assert "Nothing was done" in is_problem(response, 504, "deadline-exceeded")["detail"]
    assert 1.9 <= response.elapsed.total_seconds() < 2.5
    serves_again(impatient)


def test_a_connection_that_breaks_in_use_is_an_outage(impatient: Service, database: TestDatabase) -> None:
    with database.as_superuser() as admin, ThreadPoolExecutor() as threads, table_locked(database):
        response = threads.submit(impatient.client.post, "/users", json=new_user())
        until(lambda: admin.execute(WAITERS, (database.name,)).fetchall(), "the request waits for the table")
        admin.execute(END_SESSIONS, (database.name,))
        assert "may or may not" in is_problem(response.result(), 503, "database-unavailable")["detail"]
    serves_again(impatient)


def no_connection_left(service: Service) -> None:
    problem = is_problem(service.client.get("/users"), 503, "database-unavailable")
    assert "max_connections" in problem["detail"]


@pytest.mark.parametrize("others", [5, 8], ids=["but for superusers", "at all"])
def test_a_server_without_a_connection_left_is_distinguished_from_an_outage(
    own_database: TestDatabase, own_service: Service, others: int
) -> None:
    serves_again(own_service)
    with ExitStack() as stack:
        admin, *_ = [stack.enter_context(own_database.as_superuser()) for _ in range(others - 1)]

        def last_taken() -> bool:  # or the service has it again: it looks now and then how the database is
            admin.execute(END_SESSIONS, (own_database.name,))
            with suppress(OperationalError):
                stack.enter_context(own_database.as_superuser())
                return True
            return False

        until(last_taken, "others have every connection")
        admin.execute(END_SESSIONS, (own_database.name,))
        no_connection_left(own_service)
    serves_again(own_service)


def test_a_role_without_a_connection_left_is_distinguished_from_an_outage(
    own_database: TestDatabase, own_service: Service
) -> None:
    serves_again(own_service)
    with own_database.as_superuser() as admin:
        admin.execute(f"ALTER ROLE {own_database.name} CONNECTION LIMIT 0")
        admin.execute(END_SESSIONS, (own_database.name,))
        no_connection_left(own_service)
        admin.execute(f"ALTER ROLE {own_database.name} CONNECTION LIMIT -1")
    serves_again(own_service)


def test_a_stopped_server_is_an_outage_and_not_a_limit(own_cluster: Cluster, own_service: Service) -> None:
    own_cluster.stop()
    try:
        for method, path, body in [("GET", "/users", None), ("GET", "/users/1", None), ("POST", "/users", new_user())]:
            problem = is_problem(own_service.client.request(method, path, json=body), 503, "database-unavailable")
            assert "max_connections" not in problem["detail"]
    finally:
        own_cluster.start()
    serves_again(own_service)


@contextmanager
def renamed_column(database: TestDatabase) -> Iterator[None]:
    with database.connect() as conn:
        conn.execute('ALTER TABLE "user" RENAME COLUMN fname TO secret_column')
        yield
        conn.execute('ALTER TABLE "user" RENAME COLUMN secret_column TO fname')


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "/users", None),
        ("GET", "/users/1", None),
        ("POST", "/users", new_user()),
        ("PUT", "/users/1", new_user()),
        ("PATCH", "/users/1", {"lname": "Hopper"}),
        ("POST", "/users/authenticate", {"email": "x", "password": "x"}),
    ],
)
def test_a_bug_is_described_in_the_log_and_not_to_the_client(
    impatient: Service, database: TestDatabase, method: str, path: str, body: dict[str, str] | None
) -> None:
    with renamed_column(database):
        response = impatient.client.request(method, path, json=body)
    is_problem(response, 500, "internal-error")
    assert "column" not in response.text
    request_id = response.headers["X-Request-ID"]
    logged = until(lambda: impatient.log.partition(f"ERROR   [{request_id}]")[2], "the bug is logged with the request")
    assert "Traceback" in logged
    assert "UndefinedColumn" in logged
    serves_again(impatient)


def test_an_error_that_concerns_a_row_logs_neither_its_password_nor_the_hash(
    impatient: Service, database: TestDatabase
) -> None:
    with database.connect() as conn:
        conn.execute("ALTER TABLE \"user\" ADD CONSTRAINT no_ada CHECK (fname <> 'Ada')")
        response = impatient.client.post("/users", json=new_user())
        conn.execute('ALTER TABLE "user" DROP CONSTRAINT no_ada')
    is_problem(response, 409, "rule-violated")
    request_id = response.headers["X-Request-ID"]
    until(lambda: f"[{request_id}] POST /users 409" in impatient.log, "the request is logged")
    assert "correct horse" not in impatient.log
    assert "$argon2id$" not in impatient.log
