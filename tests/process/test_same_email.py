"""Which emails are the same: by one rule on every server, also while a release before this one writes to the table."""

import sys
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from signal import SIGKILL

import httpx
import psycopg
import pytest
from psycopg import errors

from service.database.schema import SchemaError
from tests.process.test_schema import psql
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import everything, make_schema, prepare
from tests.support.users import create, new_user, signs_in

pytestmark = pytest.mark.usefixtures("cheap_hashes")

# Of the wheel's PostgreSQL. tests/system/test_locales.py has those of Debian's.
LOCALES = {
    "C": "TEMPLATE template0 LOCALE 'C'",
    "C.UTF-8": "TEMPLATE template0 LOCALE 'C.UTF-8'",
    "PostgreSQL's own": "TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'PG_UNICODE_FAST' LOCALE 'C'",
}

SAME = [
    ("INFO@example.com", "info@example.com"),
    ("ZOË@example.com", "zoë@example.com"),
    ("zoe\N{COMBINING DIAERESIS}.2@example.com", "ZOË.2@example.com"),
    ("STRASSE@example.com", "straße@example.com"),
    ("ΟΔΟΣ@example.com", "οδος@example.com"),
    ("ИВАН@example.com", "иван@example.com"),
    ("İSTANBUL@example.com", "\N{LATIN SMALL LETTER DOTLESS I}stanbul@example.com"),
    ("ada@BÜCHER.example", "ada@bücher.example"),
]
DIFFERENT = ["zoe.3@example.com", "zoë.3@example.com", "żoe.3@example.com", "o.3@example.com", "ø.3@example.com"]

SELECT_FOLDED = """
    SELECT letter, user_email_fold(letter), user_email_fold(letter || 'x') FROM unnest(%s::text[]) AS letter
"""

INSERT = """
    INSERT INTO "user" (fname, lname, email, password_hash) VALUES ('Ada', 'Lovelace', %s, '$argon2id$') RETURNING id
"""


def knows_which_emails_are_the_same(client: httpx.Client) -> None:
    """Assert that sign-up, login and the filter agree on it."""
    for email, other in SAME:
        user = create(client, email=email)
        assert client.post("/users", json=new_user(email=other)).json()["code"] == "email-taken", other
        assert signs_in(client, email), email
        assert signs_in(client, other), other
        assert client.get("/users", params={"email": other}).json() == [user], other
        assert client.patch(f"/users/{user['id']}", json={"email": other}).status_code == 200, other
        assert client.delete(f"/users/{user['id']}").status_code == 204
    assert len({create(client, email=email)["id"] for email in DIFFERENT}) == len(DIFFERENT)


@pytest.mark.parametrize("locale", LOCALES)
def test_emails_are_the_same_whatever_the_locale(cluster: Cluster, locale: str) -> None:
    with Service(cluster.create_database(LOCALES[locale]).environment) as service:
        knows_which_emails_are_the_same(service.client)


def folded(email: str) -> str:
    """Return the folded form, by Python's means (Unicode, chapter 3.13, D145)."""
    text = unicodedata.normalize("NFD", email).casefold()
    for letter in ("\N{LATIN SMALL LETTER DOTLESS I}", "i\N{COMBINING DOT ABOVE}"):
        text = text.replace(letter, "i")
    return unicodedata.normalize("NFC", text)


def test_the_rule_is_unicodes_for_every_letter(cluster: Cluster) -> None:
    database = cluster.create_database()
    prepare(database)
    letters = [letter for letter in map(chr, range(1, sys.maxunicode)) if folded_in_unicode_14(letter)]
    with database.connect() as conn:
        found = conn.execute(SELECT_FOLDED, [letters])
        wrong = [row for row in found if row[1:] != (folded(row[0]), folded(row[0] + "x"))]
    assert len(letters) > 2500
    assert wrong == []


def folded_in_unicode_14(letter: str) -> bool:
    """Tell whether folding changes it; leave out the letters that only a later Python knows."""
    return not 0xD800 <= ord(letter) < 0xE000 and folded(letter) != letter and letter not in LATER


LATER = {  # of Unicode 16 and 17
    chr(code)
    for code in (0x1C89, *range(0xA7CB, 0xA7D0), 0xA7D2, 0xA7D4, 0xA7DA, 0xA7DC, *range(0x10D50, 0x10D66),
                 *range(0x16EA0, 0x16EB9))
}  # fmt: skip


def test_a_long_text_of_combining_marks_takes_no_time(cluster: Cluster) -> None:
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute("SET statement_timeout = '1s'")
        marks = "\N{COMBINING ACUTE ACCENT}\N{COMBINING DOT BELOW}" * 15_000
        assert conn.execute("SELECT user_email_fold(%s)", [marks]).fetchone() == (marks,)


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    """A table of the release before, which has no index of folded emails, with one user."""
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute("DROP FUNCTION user_email_fold CASCADE; DROP TABLE schema_applied")
        conn.execute(INSERT, ["Ada@example.com"])
    return database


@pytest.fixture
def conn(database: TestDatabase) -> Iterator[psycopg.Connection]:
    with database.connect() as conn:
        yield conn


def test_the_table_of_the_release_before_gets_the_rule_and_keeps_its_rows(
    database: TestDatabase, conn: psycopg.Connection
) -> None:
    before = conn.execute('SELECT xmin, ctid, * FROM "user"').fetchall()
    assert prepare(database) == ["building the index of emails", "schema.sql is applied"]
    assert conn.execute('SELECT xmin, ctid, * FROM "user"').fetchall() == before, "no row is rewritten"
    assert prepare(database) == []
    with pytest.raises(errors.UniqueViolation):
        conn.execute(INSERT, ["ADA@example.com"])


def test_the_same_emails_stop_the_start_which_names_their_ids(database: TestDatabase, conn: psycopg.Connection) -> None:
    conn.execute('DROP INDEX user_email_lower_key; CREATE UNIQUE INDEX user_email_lower_key ON "user" (email)')
    emails = ("zoë@example.com", "x@example.com", "ZOË@example.com")
    ids = [conn.execute(INSERT, [email]).fetchone() for email in emails]
    first, _, second = (row[0] for row in ids if row)
    before = everything(database)
    done = make_schema(database)
    assert done.returncode == 2
    assert "the same email but for its case" in done.stderr
    assert done.stderr.endswith(f"ids {first}, {second}\n")
    assert len(done.stderr.splitlines()) == 1
    assert "zo" not in done.stderr.lower(), "no email is printed"
    assert everything(database) == before
    conn.execute('DELETE FROM "user" WHERE id = %s', [second])
    assert make_schema(database).returncode == 0


def test_writes_go_on_while_the_index_is_built(database: TestDatabase, conn: psycopg.Connection) -> None:
    with ThreadPoolExecutor() as executor, database.connect() as writer:
        writer.execute("SET statement_timeout = '5s'")
        with conn.transaction():
            conn.execute("UPDATE \"user\" SET fname = 'Augusta'")  # the build waits for this transaction
            start = executor.submit(prepare, database)
            until(lambda: builds(database), "the index is being built")
            writer.execute(INSERT, ["grace@example.com"])
            assert writer.execute("UPDATE \"user\" SET fname = 'G' WHERE email LIKE 'grace%'").rowcount == 1
            assert not start.done()
        assert start.result(timeout=30)[-1] == "schema.sql is applied"


def builds(database: TestDatabase) -> bool:
    with database.as_superuser() as conn:
        found = conn.execute("SELECT FROM pg_stat_progress_create_index WHERE datname = current_database()").fetchall()
        return bool(found)


def test_a_build_that_was_killed_is_made_again(database: TestDatabase, conn: psycopg.Connection) -> None:
    with conn.transaction():
        conn.execute("UPDATE \"user\" SET fname = 'Augusta'")
        killed = Service(database.environment, "schema")
        until(lambda: builds(database), "the index is being built")
        killed.stop(SIGKILL)
        with database.as_superuser() as superuser:
            superuser.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_progress_create_index")
    until(lambda: not builds(database), "its session ends")
    invalid = "SELECT indexrelid::regclass::text FROM pg_index WHERE NOT indisvalid"
    assert conn.execute(invalid).fetchall() == [("user_email_folded_key",)]
    assert prepare(database) == ["building the index of emails", "schema.sql is applied"]
    assert conn.execute(invalid).fetchall() == []


def test_a_build_that_meets_the_same_emails_fails_without_an_email_in_its_message(
    database: TestDatabase, conn: psycopg.Connection
) -> None:
    conn.execute('DROP INDEX user_email_lower_key; CREATE UNIQUE INDEX user_email_lower_key ON "user" (email)')
    with ThreadPoolExecutor() as executor:
        with conn.transaction():
            conn.execute(INSERT, ["zoë@example.com"])
            start = executor.submit(prepare, database)
            until(lambda: builds(database), "the index is being built")
            conn.execute(INSERT, ["ZOË@example.com"])
        with pytest.raises(SchemaError, match="two users got the same email: try again"):
            start.result(timeout=30)
    with pytest.raises(SchemaError, match="the same email but for its case"):
        prepare(database)


def test_a_release_before_finds_the_index_that_it_needs(cluster: Cluster) -> None:
    """It looks users up by lower(email), and does not start without this index."""
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute("SET enable_seqscan = off")
        plan = conn.execute("EXPLAIN SELECT FROM \"user\" WHERE lower(email) = lower('ADA@example.com')").fetchall()
        found = conn.execute("SELECT indisunique AND indisvalid FROM pg_index"
                             " WHERE indexrelid = 'user_email_lower_key'::regclass").fetchall()  # fmt: skip
    assert "user_email_lower_key" in str(plan)
    assert found == [(True,)]


def test_psql_with_another_encoding_makes_the_same_rule(cluster: Cluster) -> None:
    database = cluster.create_database()
    psql(database, PGCLIENTENCODING="LATIN1")
    with database.connect() as conn:
        assert conn.execute("SELECT user_email_fold('ŁOË@example.com')").fetchone() == ("łoë@example.com",)
