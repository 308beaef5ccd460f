"""Tables in today's form and the older one, what brings them up to date, and what shows whether it did."""

import os
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from service import settings as environment
from service.app import UPGRADES
from service.database.schema import Upgrade
from service.startup import prepare_server
from tests.support.postgres import PASSWORD, TestDatabase
from tests.support.process import run_command

# As the older service made it.
OLDER_FORM = """
    CREATE SEQUENCE user_id_seq;
    CREATE TABLE "user" (
        id       integer NOT NULL DEFAULT nextval('user_id_seq'),
        fname    varchar NOT NULL,
        lname    varchar NOT NULL,
        email    varchar NOT NULL,
        password varchar NOT NULL,
        CONSTRAINT user_pkey PRIMARY KEY (id)
    )
"""

# Every row of the catalogue that the schema could touch, with the transaction that wrote it.
SELECT_CATALOGUE = """
    WITH mine AS (SELECT oid FROM pg_class WHERE relnamespace = 'public'::regnamespace)
    SELECT 'relation', relname::text, xmin::text FROM pg_class WHERE oid IN (SELECT oid FROM mine)
    UNION ALL
    SELECT 'column', attrelid::regclass || '.' || attname, xmin::text
    FROM pg_attribute WHERE attrelid IN (SELECT oid FROM mine)
    UNION ALL
    SELECT 'default', adrelid::regclass || '.' || adnum, xmin::text
    FROM pg_attrdef WHERE adrelid IN (SELECT oid FROM mine)
    UNION ALL
    SELECT 'constraint', conname::text, xmin::text FROM pg_constraint WHERE conrelid IN (SELECT oid FROM mine)
    UNION ALL
    SELECT 'sequence', seqrelid::regclass::text, xmin::text FROM pg_sequence
    ORDER BY 1, 2
"""


def create_older_table(database: TestDatabase, rows: Iterable[tuple[str, str]]) -> None:
    """Make the older table with a row for each (email, password); their ids are 1, 2, 3 …"""
    with database.connect() as conn:
        conn.execute(OLDER_FORM)
        with conn.cursor().copy('COPY "user" (fname, lname, email, password) FROM STDIN') as copy:
            for email, password in rows:
                copy.write_row(("Ada", "Lovelace", email, password))


def guest_of(database: TestDatabase) -> TestDatabase:
    """Return `database` as a role sees it that may use what is there, and may create nothing."""
    guest = f"{database.name}_guest"
    with database.as_superuser() as conn:
        conn.execute(f"CREATE ROLE {guest} LOGIN PASSWORD '{PASSWORD}'")

    class Guest(TestDatabase):
        @property
        def environment(self) -> dict[str, str]:
            return {**super().environment, "DATABASE_USERNAME": guest}

    return Guest(database.cluster, database.name)


def prepare(database: TestDatabase, upgrades: Sequence[Upgrade] = UPGRADES) -> list[str]:
    """Prepare the server as every start of the service does; return what was reported meanwhile."""
    found = environment.load(database.environment, dotenv=Path(os.devnull))
    reported: list[str] = []
    prepare_server(found.server, found, upgrades, reported.append)
    return reported


def make_schema(database: TestDatabase, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m service schema`."""
    return run_command({**database.environment, **settings}, "schema")


def everything(database: TestDatabase) -> list[Any]:
    """Return the catalogue and every row of the table; any write to either changes what this returns."""
    with database.as_superuser() as conn:
        rows = conn.execute('SELECT xmin::text, ctid::text, u.* FROM public."user" AS u ORDER BY id').fetchall()
        return [*conn.execute(SELECT_CATALOGUE).fetchall(), *rows]
