"""Others add to the table, or take from it: while the service runs, and before it starts."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from signal import SIGHUP

import httpx
import psycopg
import pytest
from argon2 import PasswordHasher

from service.database.refusals import ServerUnfit
from service.database.schema import SchemaError
from tests.support.checkout import gone, workers
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.schemas import create_older_table, everything, guest_of, prepare
from tests.support.users import create, new_user, signs_in

pytestmark = pytest.mark.usefixtures("cheap_hashes")

RAISES = """
    CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no %', NEW.email; END $$;
    CREATE TRIGGER refuse BEFORE INSERT OR UPDATE ON "user" FOR EACH ROW EXECUTE FUNCTION refuse()
"""

# What takes nothing away, and how it is undone.
HARMLESS = {
    "a column": ('ALTER TABLE "user" ADD note text', 'ALTER TABLE "user" DROP note'),
    "a column NOT NULL with a default": (
        "ALTER TABLE \"user\" ADD note text NOT NULL DEFAULT ''",
        'ALTER TABLE "user" DROP note',
    ),
    "a generated column": (
        'ALTER TABLE "user" ADD name text GENERATED ALWAYS AS (fname || lname) STORED',
        'ALTER TABLE "user" DROP name',
    ),
    "a column called password": ('ALTER TABLE "user" ADD password text', 'ALTER TABLE "user" DROP password'),
    "an index": ('CREATE INDEX other ON "user" (lname)', "DROP INDEX other"),
    "a constraint that holds": (
        "ALTER TABLE \"user\" ADD CONSTRAINT other CHECK (fname <> '')",
        'ALTER TABLE "user" DROP CONSTRAINT other',
    ),
    "an email that has a length": (
        'ALTER TABLE "user" ALTER email TYPE varchar(254)',
        'ALTER TABLE "user" ALTER email TYPE text',
    ),
    "a domain": (
        'CREATE DOMAIN label AS text; ALTER TABLE "user" ALTER fname TYPE label',
        'ALTER TABLE "user" ALTER fname TYPE text; DROP DOMAIN label',
    ),
    "a partial index": (
        "CREATE UNIQUE INDEX other ON \"user\" (lower(email)) WHERE fname = 'Grace'",
        "DROP INDEX other",
    ),
    "another table": ('CREATE TABLE "order" (user_id bigint REFERENCES "user")', 'DROP TABLE "order"'),
    "a view": ('CREATE VIEW names AS SELECT fname, lname FROM "user"', "DROP VIEW names"),
}

# What keeps users from being created, and how it is undone.
VIOLATED = {
    "a check": (
        "ALTER TABLE \"user\" ADD CONSTRAINT other CHECK (fname <> 'Ada')",
        'ALTER TABLE "user" DROP CONSTRAINT other',
    ),
    "a unique constraint": (
        'ALTER TABLE "user" ADD CONSTRAINT other UNIQUE (lname)',
        'ALTER TABLE "user" DROP CONSTRAINT other',
    ),
    "a deferred unique constraint": (
        'ALTER TABLE "user" ADD CONSTRAINT other UNIQUE (lname) DEFERRABLE INITIALLY DEFERRED',
        'ALTER TABLE "user" DROP CONSTRAINT other',
    ),
    "a trigger that raises": (RAISES, "DROP FUNCTION refuse CASCADE"),
    "a column NOT NULL without a default": (
        'ALTER TABLE "user" ADD note text NOT NULL DEFAULT \'\'; ALTER TABLE "user" ALTER note DROP DEFAULT',
        'ALTER TABLE "user" DROP note',
    ),
    "a name with a shorter length": (
        'ALTER TABLE "user" ALTER fname TYPE varchar(2)',
        'ALTER TABLE "user" ALTER fname TYPE text',
    ),
    "a reference to another table": (
        """
        CREATE TABLE team (id int PRIMARY KEY);
        ALTER TABLE "user" ADD team int;
        ALTER TABLE "user" ALTER team SET DEFAULT 7, ADD CONSTRAINT other FOREIGN KEY (team) REFERENCES team
        """,
        'ALTER TABLE "user" DROP team; DROP TABLE team',
    ),
}

# What is lacking then, in the words of the start.
LACKING = {
    'ALTER TABLE "user" RENAME fname TO first_name': "column fname text",
    'ALTER TABLE "user" DROP created_at': "column created_at timestamp with time zone",
    'ALTER TABLE "user" DROP lname, DROP updated_at': "column lname text, column updated_at timestamp with time zone",
    'ALTER TABLE "user" ALTER updated_at TYPE timestamp': "column updated_at timestamp with time zone",
    'ALTER TABLE "user" ALTER fname TYPE char(100)': "column fname text",
    'ALTER TABLE "user" ALTER version TYPE text': "column version bigint",
    'ALTER TABLE "user" DISABLE TRIGGER user_version': "trigger user_version",
    'ALTER TABLE "user" ALTER id DROP IDENTITY; ALTER TABLE "user" ALTER id TYPE numeric': (
        "column id bigint, sequence of id"
    ),
    'ALTER TABLE "user" ALTER id DROP IDENTITY': "sequence of id",
    'ALTER TABLE "user" ALTER id SET GENERATED ALWAYS': "column id bigint",
    'ALTER TABLE "user" DROP CONSTRAINT user_pkey CASCADE': "unique index user_pkey on id",
    'ALTER TABLE "user" DROP CONSTRAINT user_pkey CASCADE, ADD CONSTRAINT user_pkey PRIMARY KEY (id) DEFERRABLE': (
        "unique index user_pkey on id"
    ),
    'DROP INDEX user_email_folded_key; CREATE INDEX user_email_folded_key ON "user" (user_email_fold(email))': (
        "unique index user_email_folded_key on user_email_fold(email)"
    ),
    'DROP INDEX user_email_folded_key; CREATE UNIQUE INDEX user_email_folded_key ON "user" (email)': (
        "unique index user_email_folded_key on user_email_fold(email)"
    ),
    "DROP INDEX user_email_folded_key; CREATE TABLE other (n int); CREATE INDEX user_email_folded_key ON other (n)": (
        "unique index user_email_folded_key on user_email_fold(email)"
    ),
    'ALTER TABLE "user" RENAME TO people; CREATE VIEW "user" AS SELECT xmin, ctid, * FROM people': (
        "sequence of id, unique index user_pkey on id, unique index user_email_folded_key on user_email_fold(email),"
        " trigger user_version"
    ),
    'CREATE TABLE parted (LIKE "user", PRIMARY KEY (id)) PARTITION BY HASH (id); DROP TABLE "user" CASCADE;'
    ' ALTER TABLE parted RENAME TO "user"': (
        "sequence of id, unique index user_pkey on id, unique index user_email_folded_key on user_email_fold(email),"
        " trigger user_version"
    ),
}


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    """One database for what is undone again, as the service of this module goes on."""
    return cluster.create_database()


@pytest.fixture
def prepared(cluster: Cluster) -> TestDatabase:
    """A database with the schema, for each test."""
    database = cluster.create_database()
    prepare(database)
    return database


@contextmanager
def changed(database: TestDatabase, change: str, undo: str) -> Iterator[psycopg.Connection]:
    with database.connect() as conn:
        conn.execute(change)
        try:
            yield conn
        finally:
            conn.execute(undo)


def serves(client: httpx.Client) -> None:
    """Assert that every request about a user succeeds."""
    user = create(client)
    path = f"/users/{user['id']}"
    credentials = {"email": user["email"], "password": "correct horse"}
    assert client.get(path).json() == user
    assert user in client.get("/users", params={"email": user["email"].upper()}).json()
    assert client.patch(path, json={"fname": "Grace"}).json()["fname"] == "Grace"
    assert client.put(path, json=new_user()).status_code == 200
    assert client.post("/users/authenticate", json=credentials).status_code == 401
    assert client.get("/users").status_code == 200
    assert client.delete(path).status_code == 204


@pytest.mark.parametrize("what", HARMLESS)
def test_what_others_add_disturbs_neither_the_running_service_nor_a_start(
    client: httpx.Client, database: TestDatabase, what: str
) -> None:
    serves(client)
    with changed(database, *HARMLESS[what]):
        before = everything(database)
        assert prepare(database) == []
        assert everything(database) == before
        for _ in range(8):  # once for each connection, and what it has prepared
            serves(client)


@pytest.mark.parametrize("what", HARMLESS)
def test_what_others_added_does_not_keep_schema_sql_from_being_applied(database: TestDatabase, what: str) -> None:
    """By a release that has another schema.sql, say."""
    prepare(database)
    with changed(database, *HARMLESS[what]) as conn:
        conn.execute("DROP TABLE schema_applied")
        assert prepare(database) == ["schema.sql is applied"]


def test_columns_in_another_order_are_as_good(prepared: TestDatabase) -> None:
    with prepared.connect() as conn:
        conn.execute('ALTER TABLE "user" DROP fname; ALTER TABLE "user" ADD note text, ADD fname text NOT NULL')
    assert prepare(prepared) == []
    with Service(prepared.environment) as service:
        serves(service.client)


def test_a_worker_is_replaced_after_a_column_was_added(prepared: TestDatabase) -> None:
    with Service({**prepared.environment, "WORKERS": "2", "WORKER_THREADS": "2"}) as service:
        with prepared.connect() as conn:
            conn.execute('ALTER TABLE "user" ADD note text')
        replace_workers(service)
        serves(service.client)


def replace_workers(service: Service) -> None:
    before = workers(service)
    service.process.send_signal(SIGHUP)
    until(lambda: gone(before) and len(workers(service)) == len(before), "every worker is replaced")
    until(lambda: service.client.get("/readyz").status_code == 200, "the new workers are ready")


@pytest.mark.parametrize("what", VIOLATED)
def test_a_constraint_of_somebody_else_is_a_conflict(client: httpx.Client, database: TestDatabase, what: str) -> None:
    user = create(client, fname="A", lname=what)
    before = client.get("/users").json()
    with changed(database, *VIOLATED[what]):
        prepare(database)
        for body in (new_user(lname=what), new_user(id=4711, lname=what)):
            is_problem(client.post("/users", json=body), 409, "rule-violated")
        assert client.get("/users").json() == before
    serves(client)
    assert client.delete(f"/users/{user['id']}").status_code == 204


@pytest.mark.parametrize("what", ["a check", "a trigger that raises", "a name with a shorter length"])
def test_a_change_that_violates_a_constraint_of_somebody_else_is_a_conflict(
    client: httpx.Client, database: TestDatabase, what: str
) -> None:
    user = create(client, fname="A")
    with changed(database, *VIOLATED[what]):
        for method, body in (("PATCH", {"fname": "Ada"}), ("PUT", new_user())):
            is_problem(client.request(method, f"/users/{user['id']}", json=body), 409, "rule-violated")
    assert client.delete(f"/users/{user['id']}").status_code == 204


def test_a_rule_against_changes_keeps_nobody_out_whose_hash_is_outdated(
    client: httpx.Client, database: TestDatabase
) -> None:
    user = create(client)
    outdated = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1).hash("correct horse")
    with database.connect() as conn:
        conn.execute('UPDATE "user" SET password_hash = %s WHERE id = %s', (outdated, user["id"]))
    with changed(database, *VIOLATED["a trigger that raises"]):
        assert signs_in(client, user["email"])
    assert client.delete(f"/users/{user['id']}").status_code == 204


def test_a_start_names_the_column_that_keeps_users_from_being_created(database: TestDatabase) -> None:
    prepare(database)
    with changed(database, *VIOLATED["a column NOT NULL without a default"]):
        (said,) = prepare(database)
    assert 'public."user".note: it is NOT NULL with no default' in said


def test_a_trigger_may_fill_a_column_that_has_no_default(prepared: TestDatabase) -> None:
    with prepared.connect() as conn:
        conn.execute("""
            CREATE FUNCTION fill() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN NEW.note = ''; RETURN NEW; END $$;
            CREATE TRIGGER fill BEFORE INSERT ON "user" FOR EACH ROW EXECUTE FUNCTION fill();
            ALTER TABLE "user" ADD note text NOT NULL
            """)
    with Service(prepared.environment) as service:
        serves(service.client)


@pytest.mark.parametrize("change", LACKING)
def test_a_start_names_all_that_the_table_lacks_and_changes_nothing(prepared: TestDatabase, change: str) -> None:
    with prepared.connect() as conn:
        conn.execute(change)
    before = everything(prepared)
    with pytest.raises(SchemaError) as refused:
        prepare(prepared)
    assert f"lacks what this service needs: {LACKING[change]}. " in str(refused.value)
    with prepared.connect() as conn:  # applied or not
        conn.execute("ALTER TABLE schema_applied RENAME TO applied")
        with pytest.raises(SchemaError, match="lacks what"):
            prepare(prepared)
        conn.execute("ALTER TABLE applied RENAME TO schema_applied")
    assert [row[:2] for row in everything(prepared)] == [row[:2] for row in before]


def test_an_index_that_was_dropped_is_made_again(prepared: TestDatabase) -> None:
    with prepared.connect() as conn:
        conn.execute("DROP INDEX user_email_folded_key")
    assert prepare(prepared) == ["schema.sql is applied"]
    assert prepare(prepared) == []


def test_an_older_table_that_has_a_column_more_is_upgraded(cluster: Cluster) -> None:
    database = cluster.create_database()
    create_older_table(database, [("ada@example.com", "correct horse")])
    with database.connect() as conn:
        conn.execute("ALTER TABLE \"user\" ADD note text DEFAULT 'kept'")
        assert "schema.sql is applied" in prepare(database)
        assert conn.execute('SELECT note FROM "user"').fetchall() == [("kept",)]
    with Service(database.environment) as service:
        serves(service.client)


def refused(service: Service, response: httpx.Response, said: str) -> None:
    is_problem(response, 503, "database-unavailable")
    until(lambda: f"the server refused a statement: {said}" in service.log, "the log says why")


def test_a_table_that_is_dropped_and_made_again_is_an_outage_until_then(prepared: TestDatabase) -> None:
    with Service(prepared.environment) as service, prepared.connect() as conn:
        for _ in range(8):
            serves(service.client)
        conn.execute('DROP TABLE "user" CASCADE')
        for method, path, body in [("GET", "/users", None), ("GET", "/users/1", None), ("POST", "/users", new_user())]:
            response = service.client.request(method, path, json=body)
            refused(service, response, 'relation "public.user" does not exist')
        prepare(prepared)
        for _ in range(8):
            serves(service.client)


def grant(to: str) -> str:
    rights = f'GRANT SELECT, INSERT, UPDATE, DELETE ON "user", failed_login, idempotency_key TO {to}'
    return f"{rights}; GRANT USAGE ON SEQUENCE user_id_seq TO {to}"


def test_what_the_role_may_not_do_is_refused_and_said(prepared: TestDatabase) -> None:
    guest = guest_of(prepared)
    role = guest.environment["DATABASE_USERNAME"]
    denied: list[tuple[str, str, Callable[[httpx.Client], httpx.Response], str]] = [
        (f'REVOKE INSERT ON "user" FROM {role}', grant(role), post, "permission denied for table user"),
        (f'REVOKE SELECT ON "user" FROM {role}', grant(role), get, "permission denied for table user"),
        (
            f'REVOKE SELECT ON "user" FROM {role}; GRANT SELECT (id, fname, lname) ON "user" TO {role}',
            grant(role),
            get,
            "permission denied for table user",
        ),
        (
            f"REVOKE USAGE ON SEQUENCE user_id_seq FROM {role}",
            grant(role),
            post,
            "permission denied for sequence user_id_seq",
        ),
        (
            'ALTER TABLE "user" ENABLE ROW LEVEL SECURITY',
            'ALTER TABLE "user" DISABLE ROW LEVEL SECURITY',
            post,
            'new row violates row-level security policy for table "user"',
        ),
    ]
    with prepared.connect() as conn:
        conn.execute(grant(role))
        with Service(guest.environment) as service:
            for revoke, give_back, request, said in denied:
                conn.execute(revoke)
                with suppress(ServerUnfit):  # of a missing GRANT: tests/process/test_rights.py
                    assert prepare(guest) == []
                refused(service, request(service.client), said)
                conn.execute(give_back)
                serves(service.client)


def get(client: httpx.Client) -> httpx.Response:
    return client.get("/users")


def post(client: httpx.Client) -> httpx.Response:
    return client.post("/users", json=new_user())


def test_a_role_that_may_use_the_columns_it_needs_and_no_other_is_enough(prepared: TestDatabase) -> None:
    guest = guest_of(prepared)
    role = guest.environment["DATABASE_USERNAME"]
    columns = "id, fname, lname, email, password_hash, created_at, updated_at, version"
    with prepared.connect() as conn:
        conn.execute('ALTER TABLE "user" ADD secret text')
        conn.execute(
            f'GRANT SELECT ({columns}), INSERT ({columns}), UPDATE ({columns}), DELETE ON "user" TO {role};'
            f" GRANT USAGE ON SEQUENCE user_id_seq TO {role};"
            f" GRANT SELECT, INSERT, UPDATE, DELETE ON failed_login, idempotency_key TO {role}"
        )
    with Service(guest.environment) as service:
        serves(service.client)
