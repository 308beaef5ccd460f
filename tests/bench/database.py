"""One throwaway PostgreSQL for all contenders, reached over TCP with a password, and the users in it.

Its settings are the defaults but for these, the same for everybody: `fsync` is off, as the disk is nobody's merit;
autovacuum and timed checkpoints are off, so that they strike no contender by chance. The table is put back into
its first state after each measurement that wrote to it.
"""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from urllib.parse import quote

from tests.support.postgres import PASSWORD, Cluster, TestDatabase, installed
from tests.support.process import CHECKOUT, environment

USERS = 10_000

SETTINGS = {
    "max_connections": "1000",
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_size": "16GB",
}

# Plain to see in a table, and unlike one another. The hash is that of a password which nobody knows.
INSERT_USERS = """
    INSERT INTO "user" (id, fname, lname, email, password_hash, created_at, updated_at)
    SELECT i, 'First' || i, 'Last' || i, 'user' || i || '@example.com',
           '$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE',
           '2025-01-01 00:00:00Z'::timestamptz + i * interval '16.601 ms',
           '2025-01-01 00:00:00Z'::timestamptz + i * interval '16.601 ms'
    FROM generate_series(1, %s) AS i
"""


@contextmanager
def cluster(settings: Mapping[str, str] | None = None) -> Iterator[Cluster]:
    """Have PostgreSQL while the block runs."""
    with Cluster(installed()["18"], {**SETTINGS, **(settings or {})}) as server:
        yield server


def create(server: Cluster, users: int = USERS) -> TestDatabase:
    """Return a new database with so many users, in the form that the service's own schema.sql gives it."""
    database = server.create_database()
    subprocess.run(
        [sys.executable, "-m", "service", "schema"],
        cwd=CHECKOUT, env=environment(database.environment), check=True, capture_output=True,
    )  # fmt: skip
    with database.as_superuser() as conn:
        conn.execute(INSERT_USERS, (users,))
        conn.execute('VACUUM (FREEZE, ANALYZE) "user"')
        conn.execute("CHECKPOINT")
    return database


def restore(database: TestDatabase) -> None:
    """Put the users back as they were, with no dead row left in the table or its indexes."""
    with database.as_superuser() as conn:
        conn.execute("SET lock_timeout = '20s'")
        conn.execute('TRUNCATE "user", idempotency_key')
        conn.execute(INSERT_USERS, (USERS,))
        conn.execute('VACUUM (FREEZE, ANALYZE) "user"')


def url(database: TestDatabase) -> str:
    """Return the address of the database, as the peers take it."""
    return f"postgresql://{database.name}:{quote(PASSWORD)}@127.0.0.1:{database.cluster.port}/{database.name}"
