"""What fits a pooler is judged by the pooler, and a mode that cannot serve stops the start."""

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.checkout import Checkout, copied
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.replication import promote, streaming_standby
from tests.system.pooler import Pooler


@pytest.fixture(scope="module")
def small() -> Iterator[Cluster]:
    with Cluster(installed()["18"], {"max_connections": "20"}) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database(small: Cluster) -> TestDatabase:
    return small.create_database()


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    with copied() as checkout:
        yield checkout


@contextmanager
def pooled(database: TestDatabase, *lines: str) -> Iterator[Pooler]:
    with (
        tempfile.TemporaryDirectory(prefix="pooler-") as folder,
        Pooler(database, Path(folder), "\n".join(lines)) as pooler,
    ):
        yield pooler


def checked(checkout: Checkout, pooler: Pooler, **settings: str) -> tuple[int, str]:
    """Return the exit status of `check` and its last line, which is the only one of an error."""
    ended = checkout.run("check", {**pooler.environment, **settings})
    assert ended.stderr.count("\n") == (ended.returncode != 0), ended.stderr
    return ended.returncode, (ended.stderr or ended.stdout).splitlines()[-1]


def test_the_pooler_and_not_the_server_limits_the_connections(checkout: Checkout, database: TestDatabase) -> None:
    with pooled(database, f"stats_users = {database.name}") as pooler:
        status, line = checked(checkout, pooler, INSTANCES="4")
        assert (status, "100 allowed = max_client_conn 100 of the pooler" in line) == (0, True), line
        status, line = checked(checkout, pooler, INSTANCES="13")
        assert status == 2
        assert re.search("104 needed .* 100 allowed", line)


def test_what_the_pooler_does_not_say_is_called_unknown(checkout: Checkout, database: TestDatabase) -> None:
    with pooled(database) as pooler:
        status, line = checked(checkout, pooler, INSTANCES="4")
        assert (status, "32 needed" in line, "is not known" in line) == (0, True, True), line


@pytest.mark.parametrize("stats", ["stats_users = {}", ""], ids=["may ask", "may not ask"])
@pytest.mark.parametrize(("mode", "told"), [("statement", "statement mode"), ("session", "session mode")])
def test_a_mode_that_cannot_serve_stops_the_start_with_one_line(
    mode: str, told: str, stats: str, checkout: Checkout, database: TestDatabase
) -> None:
    with pooled(database, f"pool_mode = {mode}", stats.format(database.name)) as pooler:
        status, line = checked(checkout, pooler, CONNECT_TIMEOUT="1")
    assert (status, told in line) == (2, True), line


@pytest.mark.parametrize("stats", ["stats_users = {}", ""], ids=["may ask", "may not ask"])
def test_session_mode_serves_with_as_many_server_connections_as_threads(stats: str, database: TestDatabase) -> None:
    with (
        pooled(database, "pool_mode = session", stats.format(database.name)) as pooler,
        Service({**pooler.environment, "WORKER_THREADS": str(pooler.size)}) as service,
    ):
        assert [service.client.get("/users").status_code for _ in range(20)] == [200] * 20


def test_a_pooler_that_reports_a_standby_after_its_promotion_is_served(small: Cluster) -> None:
    database = small.create_database()
    with streaming_standby(small) as standby, pooled(TestDatabase(standby, database.name)) as pooler:
        with pooler.connect() as conn:
            assert conn.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        promote(standby)
        with pooler.connect() as conn:
            assert conn.info.parameter_status("in_hot_standby") == "on", "or this tests nothing"
        with Service(pooler.environment) as service:
            assert service.client.get("/users").status_code == 200
