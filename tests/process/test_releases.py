"""Copies of the checkout: another release, whose schema.sql is newer; and a second resource beside the users."""

from collections.abc import Iterator

import pytest

from service.database.schema import SCHEMA
from service.users.passwords import DUMMY_HASH
from tests.process.test_grown_table import replace_workers, serves
from tests.support.checkout import Checkout, copied
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import everything, guest_of, make_schema, prepare

pytestmark = pytest.mark.usefixtures("forked")

NEWER = """
ALTER TABLE public."user" ADD COLUMN IF NOT EXISTS note text NOT NULL DEFAULT 'none';
CREATE INDEX IF NOT EXISTS user_lname_key ON public."user" (lname);
"""

ORDERS = """
CREATE TABLE IF NOT EXISTS public."order" (id bigint CONSTRAINT order_pkey PRIMARY KEY);
"""

TWO_WORKERS = {"WORKERS": "2", "WORKER_THREADS": "2"}


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """An empty database for each test."""
    return cluster.create_database()


@pytest.fixture
def newer() -> Iterator[Checkout]:
    """A release that adds a column and an index."""
    with copied() as checkout:
        with (checkout.folder / "schema.sql").open("a") as schema:
            schema.write(NEWER)
        yield checkout


def test_an_older_release_starts_beside_a_newer_one(database: TestDatabase, newer: Checkout) -> None:
    with newer.start(database.environment) as new, Service({**database.environment, **TWO_WORKERS}) as old:
        before = everything(database)
        replace_workers(old)
        assert newer.run("schema", database.environment).stdout == "the schema is up to date\n"
        assert everything(database) == before, "neither undoes or repeats what the other did"
        for service in (old, new):
            serves(service.client)
        assert "ERROR" not in old.log + new.log


def test_an_older_release_goes_on_while_a_newer_one_is_deployed(database: TestDatabase, newer: Checkout) -> None:
    with Service({**database.environment, **TWO_WORKERS}) as old:
        assert "schema.sql is applied" in newer.run("schema", database.environment).stdout
        serves(old.client)
        replace_workers(old)
        serves(old.client)
        assert "ERROR" not in old.log


# The schema of the release before versions and idempotency keys, and its two statements that write.
OLDER = SCHEMA.read_text().partition("-- Gives a row a new version")[0]
OLDER_INSERT = """
    INSERT INTO public."user" (fname, lname, email, password_hash) VALUES ('A', 'B', %s, %s) RETURNING id
"""
OLDER_UPDATE = """
    UPDATE public."user"
    SET fname = coalesce(%(fname)s::text, fname), updated_at = now()
    WHERE id = %(id)s
"""


def test_an_older_table_gets_versions_while_an_older_release_goes_on(database: TestDatabase) -> None:
    """The older release inserts and updates as it did, and knows nothing of versions."""
    with database.connect() as older:
        older.execute(OLDER)
        [(before,)] = older.execute(OLDER_INSERT, ["before@example.com", DUMMY_HASH])
        rewritten = "SELECT pg_relation_filenode('\"user\"')"
        file = older.execute(rewritten).fetchone()
        with Service(database.environment) as service:
            assert older.execute(rewritten).fetchone() == file, "no row is rewritten: so it is instant"
            [(after,)] = older.execute(OLDER_INSERT, ["after@example.com", DUMMY_HASH])
            for user_id in (before, after):
                path = f"/users/{user_id}"
                tag = service.client.get(path).headers["ETag"]
                assert (tag == '"1"') == (user_id == before)
                older.execute(OLDER_UPDATE, {"fname": "Ada", "id": user_id})
                read = service.client.get(path)
                assert read.json()["fname"] == "Ada"
                assert int(read.headers["ETag"].strip('"')) > int(tag.strip('"')), "the version grows"
                stale, current = (
                    service.client.patch(path, json={"fname": "Eve"}, headers={"If-Match": each})
                    for each in (tag, read.headers["ETag"])
                )
                assert (stale.status_code, current.status_code) == (412, 200)
                assert older.execute('SELECT fname FROM "user" WHERE id = %s', [user_id]).fetchone() == ("Eve",)
                key = {"Idempotency-Key": str(user_id)}
                first, again = (service.client.delete(path, headers=key) for _ in range(2))
                assert (first.status_code, again.status_code) == (204, 204)


FORMER_VERSIONS = """
    CREATE OR REPLACE FUNCTION count_version() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN NEW.version := OLD.version + 1; RETURN NEW; END';
    DROP TABLE schema_applied;
    INSERT INTO "user" (id, fname, lname, email, password_hash, version)
    VALUES (1, 'Ada', 'Lovelace', 'ada@example.com', '$argon2id$', 1)
"""


def test_versions_that_were_counted_become_times_when_the_schema_is_applied(database: TestDatabase) -> None:
    prepare(database)
    with database.connect() as conn:
        conn.execute(FORMER_VERSIONS)
        assert prepare(database) == ["schema.sql is applied"]
        [version] = conn.execute("UPDATE \"user\" SET fname = 'Eve' RETURNING version").fetchone() or [0]
    assert version > 1_700_000_000_000_000


@pytest.fixture
def with_orders() -> Iterator[Checkout]:
    """A release that adds a table."""
    with copied() as checkout:
        with (checkout.folder / "schema.sql").open("a") as schema:
            schema.write(ORDERS)
        yield checkout


def test_a_table_that_was_dropped_is_made_again(database: TestDatabase, with_orders: Checkout) -> None:
    def said() -> list[str]:
        done = with_orders.run("schema", database.environment)
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    applied = ["schema.sql is applied", "the schema is up to date"]
    assert said() == applied
    assert said() == applied[1:]
    with database.connect() as conn:
        conn.execute('DROP TABLE "order"')
    assert said() == applied
    assert said() == applied[1:]


def test_a_role_that_may_not_create_the_new_table_is_refused(database: TestDatabase, with_orders: Checkout) -> None:
    prepare(database)
    guest = guest_of(database)
    with database.connect() as conn:
        for kind in ("TABLES", "SEQUENCES"):
            conn.execute(f"GRANT ALL ON ALL {kind} IN SCHEMA public TO {guest.environment['DATABASE_USERNAME']}")
    assert make_schema(guest).returncode == 0
    done = with_orders.run("schema", guest.environment)
    assert done.returncode == 2
    assert "run `make schema` as the owner" in done.stderr


def test_a_column_that_the_newer_release_needs_is_added(database: TestDatabase, newer: Checkout) -> None:
    """As service/README.md says under "Add a field to users"."""
    prepare(database)
    table = newer.folder / "service" / "users" / "table.py"
    needed = 'REQUIRED_PARTS = (\n    "column note text",'
    table.write_text(table.read_text().replace("REQUIRED_PARTS = (", needed))
    for _ in ("the first start", "a start after it was dropped"):
        done = newer.run("schema", database.environment)
        assert (done.returncode, done.stdout.splitlines()[:1]) == (0, ["schema.sql is applied"]), done.stderr
        with database.connect() as conn:
            conn.execute('ALTER TABLE "user" DROP COLUMN note')
    with database.connect() as conn:
        conn.execute('ALTER TABLE "user" ADD COLUMN note integer')
    done = newer.run("schema", database.environment)
    assert done.returncode == 2
    assert "lacks what this service needs: column note text" in done.stderr
