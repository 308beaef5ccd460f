"""A primary and its standby, each behind a PgBouncer of its own."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

import psycopg
import pytest

from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.replication import streaming_standby
from tests.system.pooler import Pooler

USER = {"fname": "Ada", "lname": "Pool", "email": "ada@example.com", "password": "p" * 8}


@pytest.fixture
def standby() -> Iterator[tuple[TestDatabase, Cluster]]:
    """A database, and a standby that has it too."""
    with Cluster(installed()["18"]) as primary:
        database = primary.create_database()
        with streaming_standby(primary) as standby:
            yield database, standby


@pytest.fixture
def poolers(standby: tuple[TestDatabase, Cluster]) -> Iterator[tuple[Pooler, Pooler]]:
    database, replica = standby
    with (
        TemporaryDirectory() as front,
        TemporaryDirectory() as back,
        Pooler(database, Path(front)) as primary,
        Pooler(TestDatabase(replica, database.name), Path(back)) as copy,
    ):
        yield primary, copy


def test_replicas_behind_a_pooler_serve_reads(
    standby: tuple[TestDatabase, Cluster], poolers: tuple[Pooler, Pooler]
) -> None:
    (database, replica), (front, back) = standby, poolers
    url = f"postgresql://{database.name}:{quote(PASSWORD)}@127.0.0.1:{{}}/{database.name}".format
    settings = {"DATABASE_URL": url(front.port), "DATABASE_READ_URL": url(back.port), "READS": "replica"}
    with Service(settings) as service, psycopg.connect(replica.conninfo(), autocommit=True) as conn:
        until(lambda: "Read-From" in service.client.get("/users").headers, "reads go to the replica")
        path = service.client.post("/users", json=USER).headers["Location"]
        conn.execute("SELECT pg_wal_replay_pause()")
        changed = service.client.patch(path, json={"lname": "Changed"})
        after = {"Read-After": changed.headers["Read-After"]}
        behind = service.client.get(path, headers=after)
        conn.execute("SELECT pg_wal_replay_resume()")
        until(lambda: "Read-From" in service.client.get(path, headers=after).headers, "the replica has it")
        front.stop()
        alone = [service.client.get(path) for _ in range(20)]
    assert (behind.text, "Read-From" in behind.headers) == (changed.text, False)
    assert {(each.status_code, each.text) for each in alone} == {(200, changed.text)}
