"""An older table is brought up to date while it is in use, while the upgrade is killed, and when it must fail."""

from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from signal import SIGKILL

import pytest

from service.users.passwords import is_password
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import create_older_table, everything, make_schema, prepare

pytestmark = pytest.mark.usefixtures("forked")

HASHED = "'$argon2id$%'"
INSERT_AS_THE_OLDER_SERVICE = "INSERT INTO \"user\" (fname, lname, email, password) VALUES ('Ada', 'Lovelace', %s, %s)"


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """An empty database for each test."""
    return cluster.create_database()


def rows(number: int) -> list[tuple[str, str]]:
    return [(f"user{n}@example.com", f"correct horse {n}") for n in range(1, number + 1)]


def hashes(database: TestDatabase, column: str = "password") -> dict[int, str]:
    """Return the passwords that are hashed, by id."""
    with database.connect() as conn:
        found = conn.execute(f'SELECT id, {column} FROM "user" WHERE {column} LIKE {HASHED}').fetchall()
    return dict(found)


def wrong(database: TestDatabase, passwords: dict[str, str], *, check: Collection[str] = ()) -> list[str]:
    """Return the emails whose stored hash is not that of their password; `check` some only: each takes 19 ms."""
    with database.connect() as conn:
        stored: dict[str, str] = dict(conn.execute('SELECT email, password_hash FROM "user"').fetchall())
    assert stored.keys() == passwords.keys(), "rows were lost"
    checked = check or list(passwords)
    with ThreadPoolExecutor(2) as executor:
        right = executor.map(lambda email: is_password(passwords[email], stored[email]), checked)
    return [email for email, is_right in zip(checked, right, strict=True) if not is_right]


def test_progress_is_reported_while_it_is_made(database: TestDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also into a file or a pipe, as a container's log is, and without Python's own switch for that."""
    monkeypatch.setattr(Service, "fork_server", None)  # a fork has the streams of its parent
    create_older_table(database, rows(200))
    schema = Service({**database.environment, "PYTHONUNBUFFERED": ""}, "schema")
    try:
        until(lambda: "passwords hashed: 100 of 200\n" in schema.log, "the first batch is told")
        assert "200 of 200" not in schema.log, "it was told at the end"
    finally:
        schema.stop(SIGKILL)


def test_a_killed_upgrade_goes_on_where_it_was(database: TestDatabase) -> None:
    create_older_table(database, rows(200))
    schema = Service(database.environment, "schema")
    until(lambda: hashes(database), "the first batch is hashed")
    schema.stop(SIGKILL)
    with database.as_superuser() as conn:
        until(lambda: not conn.execute("SELECT FROM pg_stat_activity WHERE usename = %s", (database.name,)).fetchall(),
              "the killed run's sessions end")  # fmt: skip
    before = hashes(database)
    left = 200 - len(before)
    assert 0 < left <= 100
    done = make_schema(database)
    assert done.returncode == 0, done.stderr
    assert f"passwords hashed: {left} of {left}\n" in done.stdout
    after = hashes(database, "password_hash")
    assert len(after) == 200
    assert before.items() <= after.items(), "a hash was hashed again"
    assert wrong(database, dict(rows(200)), check=list(dict(rows(200)))[::10]) == []


def test_what_the_older_service_writes_meanwhile_is_neither_lost_nor_overwritten(database: TestDatabase) -> None:
    create_older_table(database, rows(200))
    expected = dict(rows(200))
    written: list[str] = []
    with ThreadPoolExecutor() as executor, database.connect() as older:
        upgrade = executor.submit(make_schema, database)
        until(lambda: hashes(database), "the first batch is hashed")
        for number in range(1, 201, 10):  # some are hashed already, some in progress, some to come
            new = {f"user{number}@example.com": f"changed {number}", f"new{number}@example.com": f"inserted {number}"}
            changed, inserted = new.items()
            older.execute('UPDATE "user" SET password = %s WHERE email = %s', (changed[1], changed[0]))
            older.execute(INSERT_AS_THE_OLDER_SERVICE, inserted)
            expected |= new
            written += new
        assert not upgrade.done(), "the writes were too late to meet the upgrade"
        done = upgrade.result(timeout=60)
    assert done.returncode == 0, done.stderr
    untouched = [email for email in expected if email not in written]
    assert wrong(database, expected, check=[*written, *untouched[::10]]) == []


def test_several_services_start_at_once_over_an_older_table(database: TestDatabase) -> None:
    create_older_table(database, rows(150))
    with ExitStack() as stack:
        services = [Service(database.environment) for _ in range(3)]
        for service in services:
            stack.enter_context(service)
        for service, (email, password) in zip(services, rows(150), strict=False):
            credentials = {"email": email, "password": password}
            assert service.client.post("/users/authenticate", json=credentials).status_code == 200
    assert sum("passwords hashed: 150 of 150" in service.log for service in services) == 1, "one of them did the work"
    assert wrong(database, dict(rows(150)), check=list(dict(rows(150)))[::10]) == []


@pytest.mark.parametrize(
    "obstacle",
    [
        'CREATE VIEW obstacle AS SELECT fname FROM "user"',
        "CREATE TABLE obstacle (id int DEFAULT nextval('user_id_seq'))",
    ],
    ids=["a view on the table", "another table that uses its sequence"],
)
def test_an_upgrade_that_cannot_end_says_why_and_leaves_the_older_table_as_it_was(
    database: TestDatabase, obstacle: str
) -> None:
    """The older service compares plain passwords: were they hashed by then, it could let nobody in any more."""
    create_older_table(database, rows(5))
    with database.connect() as conn:
        conn.execute(obstacle)
        before = everything(database)
        done = make_schema(database)
        assert done.returncode == 2, done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr
        conn.execute(INSERT_AS_THE_OLDER_SERVICE, ("new@example.com", "correct horse"))
        conn.execute("DELETE FROM \"user\" WHERE email = 'new@example.com'")
    assert everything(database) == before


def test_an_upgrade_that_could_not_end_ends_when_the_obstacle_is_gone(database: TestDatabase) -> None:
    create_older_table(database, rows(5))
    with database.connect() as conn:
        conn.execute('CREATE VIEW obstacle AS SELECT fname FROM "user"')
        assert make_schema(database).returncode != 0
        conn.execute(INSERT_AS_THE_OLDER_SERVICE, ("new@example.com", "correct horse"))
        conn.execute("DROP VIEW obstacle")
    assert prepare(database)[-1] == "schema.sql is applied"
    assert wrong(database, {**dict(rows(5)), "new@example.com": "correct horse"}) == []


def test_a_role_that_does_not_own_the_older_table_is_refused_before_a_password_is_touched(
    database: TestDatabase,
) -> None:
    create_older_table(database, rows(5))
    other = f"{database.name}_other"
    with database.as_superuser() as conn:
        conn.execute(f"CREATE ROLE {other} LOGIN PASSWORD '{PASSWORD}'")
        conn.execute(f'GRANT ALL ON "user" TO {other}; GRANT ALL ON SCHEMA public TO {other}')
    before = everything(database)
    done = make_schema(database, DATABASE_USERNAME=other)
    assert done.returncode == 2
    assert f"the role {other} may not change the schema" in done.stderr
    assert everything(database) == before
