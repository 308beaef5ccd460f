"""Statements on a connection of the pool, run by libpq."""

import pytest
from psycopg import DataError

from service.database.connection import PooledConnection
from service.database.outage import Outage
from tests.support.postgres import TestDatabase


@pytest.mark.parametrize("change", ["DEALLOCATE ALL", "ALTER TABLE things ALTER COLUMN size TYPE text"])
def test_a_statement_whose_preparation_is_stale_is_prepared_again(database: TestDatabase, change: str) -> None:
    with PooledConnection.connect(database.conninfo, outage=Outage(), autocommit=True) as conn:
        conn.execute("DROP TABLE IF EXISTS things; CREATE TABLE things AS SELECT 1 AS size")
        assert conn.fetchone("SELECT size FROM things WHERE size::text = %(size)s", {"size": "1"}) == (1,)
        conn.execute(change)
        found = conn.fetchone("SELECT size FROM things WHERE size::text = %(size)s", {"size": "1"})
        assert found in {(1,), ("1",)}


def test_percent_signs_and_null_are_what_psycopg_makes_of_them(database: TestDatabase) -> None:
    with PooledConnection.connect(database.conninfo, outage=Outage(), autocommit=True) as conn:
        query = "SELECT %(a)s::text IS NULL, 'ab' LIKE 'a%%', %(b)s::int + 1, %(b)s"
        assert conn.fetchone(query, {"a": None, "b": 2}) == (True, True, 3, 2)
        with pytest.raises(DataError):
            conn.fetchone("SELECT %(a)s::text", {"a": "NUL: \0"})
        assert conn.fetchone("SELECT 1", {}) == (1,)
