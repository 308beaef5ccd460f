"""Statements on a connection of the pool, run by libpq."""

import pytest
from psycopg import DataError
from psycopg.errors import FeatureNotSupported, UndefinedTable
from psycopg.pq import TransactionStatus

from service.database.connection import PooledConnection
from service.database.outage import Outage
from tests.support.postgres import TestDatabase

# Behind a pooler, whose next session may lack what the last one has prepared.
SETUPS = pytest.mark.parametrize("session_setup", ["", "SET LOCAL lock_timeout = '2s'"], ids=["direct", "pooled"])


def connected(database: TestDatabase, session_setup: str) -> PooledConnection:
    return PooledConnection.connect(
        database.conninfo, outage=Outage(), session_setup=session_setup, autocommit=True, prepare_threshold=None
    )


@SETUPS
@pytest.mark.parametrize("change", ["DEALLOCATE ALL", "ALTER TABLE things ALTER COLUMN size TYPE text"])
def test_a_statement_whose_preparation_is_stale_is_prepared_again(
    database: TestDatabase, change: str, session_setup: str
) -> None:
    with connected(database, session_setup) as conn:
        conn.execute("DROP TABLE IF EXISTS things")
        conn.execute("CREATE TABLE things AS SELECT 1 AS size")
        assert conn.fetchone("SELECT size FROM things WHERE %(one)s::int = 1", {"one": 1}) == (1,)
        conn.execute(change)
        for _ in range(2):
            found = conn.fetchone("SELECT size FROM things WHERE %(one)s::int = 1", {"one": 1})
            assert found in {(1,), ("1",)}
        assert conn.execute("SELECT max(generic_plans + custom_plans) FROM pg_prepared_statements").fetchone() == (2,)


def test_behind_a_pooler_a_read_of_numbers_is_prepared_once_and_without_them(database: TestDatabase) -> None:
    with connected(database, "SET LOCAL lock_timeout = '2s'") as conn:
        conn.execute("DROP TABLE IF EXISTS things")
        conn.execute("CREATE TABLE things (size int)")
        for number in range(4_711, 4_714):
            assert conn.fetchone("SELECT %(number)s::int", {"number": number}) == (number,)
        assert conn.fetchone("INSERT INTO things VALUES (%(size)s) RETURNING size", {"size": 1}) == (1,)
        assert conn.fetchone("SELECT %(email)s::text", {"email": "ada@example.com"}) == ("ada@example.com",)
        with conn.transaction():  # which an error would end
            assert conn.fetchone("SELECT %(other)s::int", {"other": 1}) == (1,)
        statement = "SELECT statement, generic_plans + custom_plans FROM pg_prepared_statements"
        [(prepared, executed)] = conn.execute(statement).fetchall()
        assert prepared.endswith("AS SELECT $1::int")
        assert "4711" not in prepared
        assert executed == 3


UNFIT = {"SELECT * FROM nothing": UndefinedTable, "SELECT 1 GROUP BY 1 FOR UPDATE": FeatureNotSupported}


def test_behind_a_pooler_a_read_that_cannot_be_prepared_fails_with_its_own_error(database: TestDatabase) -> None:
    with connected(database, "SET LOCAL lock_timeout = '2s'") as conn:
        for query, error in UNFIT.items():
            with pytest.raises(error):
                conn.fetchone(query, {})
            assert conn.pgconn.transaction_status == TransactionStatus.IDLE


@SETUPS
def test_percent_signs_and_null_are_what_psycopg_makes_of_them(database: TestDatabase, session_setup: str) -> None:
    with connected(database, session_setup) as conn:
        query = "SELECT %(a)s::text IS NULL, 'ab' LIKE 'a%%', %(b)s::int + 1, %(b)s"
        assert conn.fetchone(query, {"a": None, "b": 2}) == (True, True, 3, 2)
        with pytest.raises(DataError):
            conn.fetchone("SELECT %(a)s::text", {"a": "NUL: \0"})
        assert conn.fetchone("SELECT 1", {}) == (1,)
