"""Some connections cannot be made while others serve: the server is not down."""

import time
from urllib.parse import quote

import psycopg

from tests.faults.conftest import SHORT
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.process import Service
from tests.support.scrape import counted

FAILURES = "db_client_connection_create_failed_total"


def limit(database: TestDatabase, connections: int) -> None:
    """Let the role have so many connections, and end all of them."""
    with psycopg.connect(database.cluster.conninfo(), autocommit=True) as conn:
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT {connections}")
        conn.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [database.name])


def test_failed_connections_beside_answered_reads_are_no_outage(cluster: Cluster) -> None:
    database = cluster.create_database()
    server = f"{database.name}:{quote(PASSWORD)}@127.0.0.1:{cluster.port}/{database.name}"
    url = f"postgresql://{server}?application_name=mine"
    with Service({**SHORT, "DATABASE_URL": url, "WORKER_THREADS": "4"}) as service:

        def state() -> object:
            return service.client.get("/pool").json()["database"]["state"]

        def ours() -> int:
            return int((service.client.get("/pool").json()["budget"] or {"ours": 0})["ours"])

        until(lambda: ours() == 4, "its connections are counted by the name that DATABASE_URL gives them")
        limit(database, 1)
        until(lambda: service.client.get("/users").status_code == 200 and state() == "up", "one connection serves")
        before = counted(service, FAILURES)
        end = time.monotonic() + 3
        while time.monotonic() < end:  # nobody reads: longer than an outage needs to be seen
            assert state() == "up"
            time.sleep(0.1)
        while counted(service, FAILURES) < before + 4:
            assert service.client.get("/users").status_code == 200
            assert state() == "up"
        limit(database, 0)
        until(lambda: state() == "down", "now it is one")
