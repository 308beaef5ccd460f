"""Every statement is served by an index, and pages hold still while the table moves."""

import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import httpx
import psycopg
import pytest
from psycopg.pq import TransactionStatus

from service.database.connection import PooledConnection
from service.database.outage import Outage
from service.users import queries
from service.users.models import Page
from service.web.idempotency import keep_outcome
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.schemas import prepare

ROWS = 100_000
HASH = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"
INSERT_ROWS = f"""
    INSERT INTO "user" (id, fname, lname, email, password_hash)
    SELECT n, 'Ada', 'Lovelace', 'user' || n || '@example.com', '{HASH}' FROM generate_series(1, {ROWS}) AS n
"""

STATEMENTS = {
    name: value
    for name, value in vars(queries).items()
    if name.isupper() and isinstance(value, str) and value.split()[0] in {"SELECT", "INSERT", "UPDATE", "DELETE"}
    and "{where}" not in value and "public." in value
}  # fmt: skip

STATEMENTS |= {
    f"{name} with a key": keep_outcome(STATEMENTS[name]) for name in ("INSERT_USER", "UPDATE_USER", "DELETE_USER")
}

VALUES: dict[str, Any] = {
    "id": 50_000,
    "after": 50_000,
    "limit": 101,
    "fname": "Ada",
    "lname": "Lovelace",
    "email": "User70000@example.com",
    "password_hash": HASH,
    "old": HASH,
    "new": HASH,
    "if_match": "{1,2}",
    "if_none_match": "{3}",
    "key_hash": b"hash",
    "fingerprint": b"hash",
    "status": 200,
}

# Lists whose plan does not depend on the values.
FILTERS = ({"after": "50000"}, {"email": "User70000@example.com"}, {"id": "1,2,3"}, {"id": "1,2,3", "after": "50000"})
PAGES = [Page.model_validate({"order": order, **given}) for order in ("id", "-id") for given in ({}, *FILTERS)]


@pytest.fixture(scope="module")
def database(database: TestDatabase) -> TestDatabase:
    """A table of a hundred thousand users, with the ids 1 to 100000."""
    prepare(database)
    with database.connect() as conn:
        conn.execute(INSERT_ROWS)
        conn.execute('VACUUM ANALYZE "user"')
    return database


@pytest.fixture
def conn(database: TestDatabase) -> Iterator[psycopg.Connection]:
    """A session on that table."""
    with database.connect() as conn:
        yield conn


@pytest.fixture
def client(service: Service) -> httpx.Client:
    """A client of a service over it."""
    return service.client


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from nodes(child)


def scans(plan: Any) -> list[str]:
    """Return how a plan reads the table; an index read from end to end, for its order only, is no good either."""
    found = [node for node in nodes(plan[0]["Plan"]) if "Scan" in node["Node Type"] and "Relation Name" in node]
    return [node["Node Type"] + ("" if "Index Cond" in node else ", whole") for node in found]


def test_the_statements_are_found() -> None:
    assert {"INSERT_USER", "SELECT_USER", "UPDATE_USER", "DELETE_USER"} <= STATEMENTS.keys()


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_is_served_by_an_index(conn: psycopg.Connection, name: str) -> None:
    found = conn.execute(f"EXPLAIN (FORMAT json) {STATEMENTS[name]}", VALUES).fetchone()
    assert found
    assert_index(name, scans(found[0]))


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_prepared_statement_is_served_by_an_index_whatever_its_values(conn: psycopg.Connection, name: str) -> None:
    assert_index(name, scans(generic_plan(conn, STATEMENTS[name], VALUES)))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.model_dump()))
def test_a_list_by_ids_or_an_email_is_served_by_an_index(conn: psycopg.Connection, page: Page) -> None:
    statement = queries.find_statement(page)
    assert_index("FIND_USERS", scans(generic_plan(conn, statement, page.model_dump())))


def generic_plan(conn: psycopg.Connection, statement: str, values: dict[str, Any]) -> Any:
    """Return the plan that PostgreSQL makes without a look at the values, as the service has it."""
    names = list(dict.fromkeys(re.findall(r"%\((\w+)\)s", statement)))
    text = re.sub(r"%\((\w+)\)s", lambda match: f"${names.index(match[1]) + 1}", statement)
    conn.execute("SET plan_cache_mode = force_generic_plan")
    conn.execute(f"PREPARE statement AS {text.replace('%%', '%')}")
    given = psycopg.ClientCursor(conn).mogrify(",".join(["%s"] * len(names)), [values[each] for each in names])
    found = conn.execute(f"EXPLAIN (FORMAT json) EXECUTE statement ({given})").fetchone()
    assert found
    return found[0]


# Every user has the last name Lovelace, a tenth has an email that begins with user1, and eleven one with user7000.
@pytest.mark.parametrize("order", ["id", "-id"])
@pytest.mark.parametrize(
    ("given", "index"),
    [
        ({"q": "LOVE"}, "user_pkey"),
        ({"q": "LOVE", "after": "50000"}, "user_pkey"),
        ({"q": "user7000"}, "user_email_folded_key"),
        ({"q": "nobody"}, "user_lname_folded_idx"),
        ({"updated_since": "2000-01-01T00:00:00Z"}, "user_pkey"),
        ({"updated_since": "2099-01-01T00:00:00Z"}, "user_updated_at_idx"),
        ({"q": "LOVE", "updated_since": "2099-01-01T00:00:00Z"}, "user_updated_at_idx"),
        ({"q": "nobody", "updated_since": "2000-01-01T00:00:00Z"}, "user_lname_folded_idx"),
    ],
)
def test_a_list_reads_few_rows_whether_many_users_match_or_none(
    conn: psycopg.Connection, given: dict[str, str], index: str, order: str
) -> None:
    page = Page.model_validate({**given, "order": order})
    statement = queries.find_statement(page)
    found = psycopg.ClientCursor(conn).execute(f"EXPLAIN (ANALYZE, FORMAT json) {statement}", page.model_dump())
    plan = (found.fetchone() or [])[0][0]["Plan"]
    assert index in {node.get("Index Name") for node in nodes(plan)}
    read = sum(
        node["Actual Rows"] + node.get("Rows Removed by Filter", 0)
        for node in nodes(plan)
        if "Scan" in node["Node Type"]
    )
    print(given, order, read)
    assert read <= 5 * 101


@pytest.mark.parametrize("behind_pooler", ["", "SET LOCAL lock_timeout = '2s'"])
@pytest.mark.parametrize("given", [{"q": "love"}, {"updated_since": "2000-01-01T00:00:00Z"}])
def test_these_lists_are_planned_for_their_values_and_leave_the_session_as_it_was(
    database: TestDatabase, given: dict[str, str], behind_pooler: str
) -> None:
    with PooledConnection.connect(
        database.conninfo, outage=Outage(), session_setup=behind_pooler, autocommit=True
    ) as conn:
        before = conn.execute("SHOW work_mem").fetchone()
        assert queries.find_users(conn, Page.model_validate(given))[1] == 100
        assert queries.count_users(conn, Page.model_validate(given)) == ROWS
        assert conn.execute("SELECT statement FROM pg_prepared_statements").fetchall() == []
        assert conn.execute("SHOW work_mem").fetchone() == before
        assert conn.pgconn.transaction_status == TransactionStatus.IDLE


# A tenth of the users is called Zimmer, by id the last ones: PostgreSQL expects one among the first ten.
INSERT_UNEVEN = INSERT_ROWS.replace("'Lovelace'", "CASE WHEN n > 18000 THEN 'Zimmer' ELSE 'Lovelace' END").replace(
    str(ROWS), "20000"
)


@pytest.fixture(scope="module")
def uneven(cluster: Cluster) -> TestDatabase:
    """A table of 20,000 users."""
    database = cluster.create_database()
    prepare(database)
    with database.connect() as conn:
        conn.execute(INSERT_UNEVEN)
        conn.execute('VACUUM ANALYZE "user"')
    return database


@pytest.mark.parametrize("behind_pooler", ["", "SET LOCAL statement_timeout = '5s'"])
def test_matches_that_are_all_far_away_are_found_by_the_index_when_the_ids_take_too_long(
    uneven: TestDatabase, monkeypatch: pytest.MonkeyPatch, behind_pooler: str
) -> None:
    monkeypatch.setattr(queries, "END_SOON", queries.END_SOON.replace("500", "3"))
    page = Page.model_validate({"q": "zimmer", "limit": 10})
    with PooledConnection.connect(
        uneven.conninfo, outage=Outage(), session_setup=behind_pooler, autocommit=True
    ) as conn:
        conn.execute("SET statement_timeout = '5s'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            conn.fetchone(queries.find_statement(page), page.model_dump(), queries.END_SOON)
        found, last = queries.find_users(conn, page)
        assert [user["id"] for user in json.loads(found)] == list(range(18_001, 18_011))
        assert last == 18_010
        assert conn.execute("SHOW statement_timeout").fetchone() == ("5s",)
        conn.execute("SET statement_timeout = '1ms'")
        if not behind_pooler:
            with pytest.raises(psycopg.errors.QueryCanceled):  # a shorter limit stays
                queries.find_users(conn, page)
        assert conn.pgconn.transaction_status == TransactionStatus.IDLE
    statement = queries.find_statement(page, "id + 0")
    with uneven.connect() as reader:
        plan = psycopg.ClientCursor(reader).execute(f"EXPLAIN (FORMAT json) {statement}", page.model_dump()).fetchone()
    assert "user_lname_folded_idx" in {node.get("Index Name") for node in nodes((plan or [])[0][0]["Plan"])}


def assert_index(name: str, found: list[str]) -> None:
    print(name, found)
    assert set(found) <= {"Index Scan", "Index Only Scan"}, f"{name} reads the table by {found}"
    assert found or name.startswith("INSERT"), f"{name} reads nothing"


def pages(client: httpx.Client, limit: int) -> Iterator[list[int]]:
    """Follow the Link header to the end."""
    url: str | None = f"/users?limit={limit}"
    while url:
        answer = client.get(url)
        assert answer.status_code == 200, answer.text
        yield [user["id"] for user in answer.json()]
        url = answer.links.get("next", {}).get("url")


def test_pages_hold_every_user_once_in_order(client: httpx.Client) -> None:
    found = list(pages(client, limit=1000))
    assert [len(page) for page in found] == [1000] * (ROWS // 1000)
    assert [user_id for page in found for user_id in page] == list(range(1, ROWS + 1))


def test_a_user_who_stays_is_on_one_page_while_others_come_and_go(client: httpx.Client, database: TestDatabase) -> None:
    """Users with an even id stay; odd ones go and come back, everywhere in the table, as the pages are read."""
    stop, moved = Event(), 0

    def move() -> None:
        nonlocal moved
        with database.connect() as mover:
            while not stop.is_set():
                for start in range(1, ROWS, 1000):
                    odd = {"ids": list(range(start, start + 1000, 2))}
                    mover.execute('DELETE FROM "user" WHERE id = ANY(%(ids)s)', odd)
                    mover.execute(INSERT_ROWS.replace("generate_series(1, 100000)", "unnest(%(ids)s::int[])"), odd)
                    moved += 1

    with ThreadPoolExecutor() as executor:
        moving = executor.submit(move)
        try:
            found = [user_id for page in pages(client, limit=500) for user_id in page]
        finally:
            stop.set()
        moving.result(timeout=60)
    print(f"{moved} times 500 users went and came back, {len(found)} users were read")
    assert moved > 1, "the table stood still"
    assert [user_id for user_id in found if user_id % 2 == 0] == list(range(2, ROWS + 1, 2))
    assert len(set(found)) == len(found), "a user was on two pages"


def test_the_largest_id_can_be_read_and_gone_after(client: httpx.Client, database: TestDatabase) -> None:
    largest = 2**63 - 1
    with database.connect() as conn:
        conn.execute(f"INSERT INTO \"user\" VALUES ({largest}, 'Last', 'One', 'last@example.com', '{HASH}')")
    try:
        assert [user["id"] for user in client.get(f"/users?after={ROWS}").json()] == [largest]
        assert client.get(f"/users/{largest}").json()["fname"] == "Last"
        after = client.get(f"/users?after={largest}")
        assert (after.status_code, after.json(), "link" in after.headers) == (200, [], False)
    finally:
        assert client.delete(f"/users/{largest}").status_code == 204


@pytest.mark.parametrize("after", [0, 1, 99_999, 2**31, 2**63 - 2, 2**63 - 1])
def test_a_cursor_of_any_size_is_served_by_the_index(conn: psycopg.Connection, after: int) -> None:
    """A number too large for bigint would be sent as numeric, which no index serves."""
    page = Page.model_construct(after=after)
    found = conn.execute(f"EXPLAIN (FORMAT json) {queries.find_statement(page)}", page.model_dump()).fetchone()
    assert found
    assert_index(f"FIND_USERS after {after}", scans(found[0]))
