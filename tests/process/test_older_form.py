"""A table of the older form is brought up to date, in place; tests/system repeats it on other versions."""

from collections.abc import Iterator
from dataclasses import dataclass
from subprocess import CompletedProcess

import httpx
import pytest

from service.users.passwords import is_password
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import create_older_table, everything, make_schema, prepare

pytestmark = pytest.mark.usefixtures("forked")

WHOLE_HASH = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"
BEGINS_LIKE_A_HASH = "$argon2id$v=19$m=19456,t=2,p=1$ is how mine begins"

# Ids are 1, 2, 3 …; the passwords are what an older service let in.
OLDER_ROWS = [
    *((f"user{number}@example.com", f"correct horse {number}") for number in range(1, 21)),
    ("Mixed.Case@Example.com", "correct horse"),
    ("spaces@example.com", "  two spaces around  "),
    ("unicode@example.com", "пароль 密码 \N{OLD KEY}"),
    ("short@example.com", "x"),
    ("long@example.com", "long " * 100),
    ("quotes@example.com", '\'; DROP TABLE "user"; -- \\ %s'),
    ("prefix@example.com", BEGINS_LIKE_A_HASH),
]
STAYS = ("hashed@example.com", WHOLE_HASH)

SELECT_FORM = """
    SELECT 'column', attname::text, format_type(atttypid, atttypmod), attnotnull::text, attidentity::text,
           pg_get_expr(adbin, adrelid)
    FROM pg_attribute LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    WHERE attrelid = 'public."user"'::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL
    SELECT 'constraint', conname::text, pg_get_constraintdef(oid), convalidated::text, NULL, NULL
    FROM pg_constraint WHERE conrelid = 'public."user"'::regclass AND contype <> 'n'
    UNION ALL
    SELECT 'index', indexrelid::regclass::text, pg_get_indexdef(indexrelid), indisvalid::text, NULL, NULL
    FROM pg_index WHERE indrelid = 'public."user"'::regclass
    UNION ALL
    SELECT 'sequence', seqrelid::regclass::text, seqmin::text, seqmax::text, seqstart::text, seqcycle::text
    FROM pg_sequence
    ORDER BY 1, 2
"""


@dataclass
class Upgraded:
    database: TestDatabase
    done: CompletedProcess[str]


@pytest.fixture(scope="module")
def upgraded(cluster: Cluster) -> Upgraded:
    """An older table, after `python -m service schema`."""
    database = cluster.create_database()
    create_older_table(database, [*OLDER_ROWS, STAYS])
    return Upgraded(database, make_schema(database))


@pytest.fixture(scope="module")
def upgraded_client(upgraded: Upgraded) -> Iterator[httpx.Client]:
    """A client of the service over it."""
    with Service(upgraded.database.environment) as service:
        yield service.client


def test_the_upgrade_succeeds_and_tells_its_progress(upgraded: Upgraded) -> None:
    assert upgraded.done.returncode == 0, upgraded.done.stderr
    assert f"passwords hashed: {len(OLDER_ROWS)} of {len(OLDER_ROWS)}\n" in upgraded.done.stdout
    assert upgraded.done.stdout.endswith("the schema is up to date\n")


def test_no_row_is_lost_and_every_id_and_name_is_kept(upgraded: Upgraded) -> None:
    with upgraded.database.connect() as conn:
        found = conn.execute('SELECT id, fname, lname, email FROM "user" ORDER BY id').fetchall()
    rows = [*OLDER_ROWS, STAYS]
    assert found == [(number, "Ada", "Lovelace", email) for number, (email, _) in enumerate(rows, start=1)]


def test_every_password_is_hashed_and_a_hash_stays_what_it_was(upgraded: Upgraded) -> None:
    with upgraded.database.connect() as conn:
        stored: dict[str, str] = dict(conn.execute('SELECT email, password_hash FROM "user"').fetchall())
    assert stored.pop(STAYS[0]) == WHOLE_HASH
    wrong = [email for email, password in OLDER_ROWS if not is_password(password, stored[email])]
    assert wrong == []


def test_the_old_password_lets_its_user_in(upgraded_client: httpx.Client) -> None:
    for email, password in OLDER_ROWS:
        answer = upgraded_client.post("/users/authenticate", json={"email": email.upper(), "password": password})
        assert (answer.status_code, answer.json().get("email")) == (200, email), f"{email}: {answer.text}"


def test_an_upgraded_user_can_be_read_changed_and_deleted(upgraded_client: httpx.Client) -> None:
    assert upgraded_client.get("/users/20").json()["email"] == "user20@example.com"
    assert upgraded_client.patch("/users/20", json={"fname": "Grace"}).json()["fname"] == "Grace"
    user = {"fname": "Ada", "lname": "Lovelace", "email": "user20@example.com", "password": "correct horse 20"}
    assert upgraded_client.delete("/users/20").status_code == 204
    assert upgraded_client.post("/users", json={"id": 20, **user}).status_code == 201


def test_new_ids_begin_above_those_that_a_client_may_choose(upgraded_client: httpx.Client) -> None:
    user = {"fname": "Grace", "lname": "Hopper", "email": "grace@example.com", "password": "correct horse"}
    created = upgraded_client.post("/users", json=user).json()
    assert created["id"] >= 2**31
    assert upgraded_client.delete(f"/users/{created['id']}").status_code == 204


def test_an_upgraded_table_is_like_one_made_today(upgraded: Upgraded) -> None:
    fresh = upgraded.database.cluster.create_database()
    prepare(fresh)
    with fresh.connect() as today, upgraded.database.connect() as conn:
        assert conn.execute(SELECT_FORM).fetchall() == today.execute(SELECT_FORM).fetchall()


def test_a_second_run_does_nothing(upgraded: Upgraded) -> None:
    before = everything(upgraded.database)
    assert make_schema(upgraded.database).stdout == "the schema is up to date\n"
    assert everything(upgraded.database) == before


def test_emails_that_differ_by_case_stop_the_upgrade_and_nothing_is_changed(cluster: Cluster) -> None:
    database = cluster.create_database()
    emails = ["ada@example.com", "grace@example.com", "Ada@example.com", "x@example.com", "GRACE@example.com"]
    create_older_table(database, [(email, "correct horse") for email in emails])
    before = everything(database)
    done = make_schema(database)
    assert done.returncode == 2
    assert "the same email but for its case" in done.stderr
    assert done.stderr.endswith("ids 1, 3; 2, 5\n")
    assert len(done.stderr.splitlines()) == 1
    assert everything(database) == before


@pytest.mark.parametrize(
    "variant",
    [
        "ADD UNIQUE (email)",
        "ALTER password TYPE varchar(64)",
        "ALTER email DROP NOT NULL, ALTER password DROP NOT NULL",
    ],
)
def test_a_variant_of_the_older_form_becomes_todays_form_too(cluster: Cluster, variant: str) -> None:
    database = cluster.create_database()
    create_older_table(database, [("ada@example.com", "correct horse")])
    with database.connect() as conn:
        conn.execute(f'ALTER TABLE "user" {variant}')
    prepare(database)
    user = {"fname": "A", "lname": "B", "email": "ada@example.com", "password": "correct horse"}
    with Service(database.environment) as service:
        assert service.client.post("/users", json=user).json()["code"] == "email-taken"
        assert (
            service.client.post(
                "/users/authenticate", json={"email": "ada@example.com", "password": "correct horse"}
            ).status_code
            == 200
        )
    with database.connect() as conn:
        nullable = conn.execute(
            "SELECT attname FROM pg_attribute"
            " WHERE attrelid = 'public.\"user\"'::regclass AND attnum > 0 AND NOT attnotnull"
        ).fetchall()
    assert nullable == []
