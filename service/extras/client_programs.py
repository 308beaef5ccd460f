"""PostgreSQL's own programs on the service's database: a shell, a backup, and a backup put back."""

import os
import re
import signal
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from service.extras import embedded
from service.extras.embedded import EmbeddedError
from service.extras.new_file import new_file

# Where Debian, Red Hat and Homebrew put the programs of each version. PATH and the wheel are searched too.
FOLDERS = ("usr/lib/postgresql/*/bin", "usr/pgsql-*/bin", "opt/homebrew/opt/postgresql@*/bin")

NAMES = ("psql", "pg_dump", "pg_restore")

# Lines of a backup's table of contents: those that create extensions, which only a superuser may do, are left out, and
# those that grant privileges come last.
EXTENSION = re.compile(r"\d+; \d+ \d+ (EXTENSION|COMMENT - EXTENSION) ")
PRIVILEGE = re.compile(r"\d+; \d+ \d+ (DEFAULT )?ACL ")

# The tables stay locked until the end of the restore, so nobody adds a row meanwhile. Without its hash, the schema is
# applied again: a backup may be older than the schema.
BEGIN_RESTORE = r"""
\set ON_ERROR_STOP on
\set SHOW_CONTEXT never
BEGIN;
SET LOCAL lock_timeout = '5s';
SET LOCAL client_min_messages = warning;
DROP TABLE IF EXISTS public.schema_applied;
DO $$
DECLARE
    name    text;
    has_row boolean;
BEGIN
    FOR name IN SELECT oid::regclass
                FROM pg_class
                WHERE relkind = 'r' AND relpersistence = 'p'
                      AND relnamespace::regnamespace::text !~ '^(pg_|information_schema$)'
    LOOP
        EXECUTE format('LOCK TABLE %s IN ACCESS EXCLUSIVE MODE', name);
        EXECUTE format('SELECT EXISTS (SELECT FROM %s)', name) INTO has_row;
        IF has_row THEN
            RAISE EXCEPTION 'the table % has rows, which would be lost: restore into an empty database', name;
        END IF;
    END LOOP;
END
$$;
"""

# The roles of another server may be missing here: report each privilege that cannot be granted, and go on.
BEGIN_PRIVILEGES = r"""
\set ON_ERROR_STOP off
\set ON_ERROR_ROLLBACK on
"""


class ProgramError(Exception):
    """A program is missing or failed; the text gives the reason and, where there is one, the remedy."""


def shell(server: str) -> int:
    """Run psql on `server`, a libpq connection string, and return its exit status. Raises ProgramError."""
    psql = programs_for(_version(server), older=True) / "psql"
    conninfo, environment = _connection(server)
    signal.signal(signal.SIGINT, lambda *_: None)  # Ctrl-C cancels a query, and ends neither psql nor PostgreSQL
    return subprocess.run([psql, conninfo], check=False, env=environment).returncode  # noqa: S603


def back_up(server: str, file: Path) -> None:
    """Write the database to `file`, which only its owner may read. Raises ProgramError; then there is no such file."""
    pg_dump = programs_for(_version(server)) / "pg_dump"
    conninfo, environment = _connection(server)
    with new_file(file, ProgramError) as output:
        _run(
            [pg_dump, "--format=custom", "--no-unlogged-table-data", "--exclude-table=public.schema_applied",
             f"--file={output.name}", conninfo],
            environment,
        )  # fmt: skip


def restore(server: str, file: Path) -> str:
    """Put the tables of a backup into an empty database, in one transaction; return warnings about privileges.

    When it fails, or a table has rows, nothing changes. Raises ProgramError.
    """
    folder = programs_for(_version(server))
    conninfo, environment = _connection(server)
    entries = _run([folder / "pg_restore", "--list", str(file)], environment).splitlines(keepends=True)
    privileges = list(filter(PRIVILEGE.match, entries))
    others = [line for line in entries if not PRIVILEGE.match(line) and not EXTENSION.match(line)]
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe would fill up, as nobody reads it until the end
        subprocess.Popen(  # noqa: S603
            [folder / "psql", "--no-psqlrc", "--quiet", "--output=/dev/null", conninfo],
            stdin=subprocess.PIPE, stderr=errors, text=True, env=environment,
        ) as psql,
    ):  # fmt: skip
        failure = ""
        try:
            for begin, chosen in ((BEGIN_RESTORE, others), (BEGIN_PRIVILEGES, privileges)):
                print(begin, file=psql.stdin, flush=True)
                _run(
                    [folder / "pg_restore", "--clean", "--if-exists", "--no-owner", "--use-list=/dev/stdin", "--file=-",
                     str(file)],
                    environment, "".join(chosen), psql.stdin,
                )  # fmt: skip
            print("\\set ON_ERROR_STOP on\nCOMMIT;", file=psql.stdin, flush=True)
        except (ProgramError, BrokenPipeError) as exc:  # without its COMMIT, psql leaves everything as it was
            failure = str(exc)
        psql.communicate()
        errors.seek(0)
        messages = _one_line(errors.read())
    if failure or psql.returncode:
        raise ProgramError(messages or failure)
    return messages


def _version(server: str) -> int:
    try:
        with psycopg.connect(server, connect_timeout=10) as conn:
            return conn.info.server_version // 10_000
    except psycopg.OperationalError as exc:
        raise ProgramError(_one_line(str(exc))) from exc


def _connection(server: str) -> tuple[str, dict[str, str]]:
    """Return the connection string without its password, as every user can see a command line, and the environment."""
    parts = conninfo_to_dict(server)
    environment = {**os.environ, "PGPASSWORD": str(parts.pop("password", ""))}
    parts.setdefault("target_session_attrs", "read-write")  # of several hosts, the one that is not a standby
    return make_conninfo("", **parts), environment


def programs_for(version: int, *, older: bool = False) -> Path:
    """Return the folder with the oldest programs that are as new as the server, or newer.

    pg_dump refuses a newer server, and what a newer pg_dump writes may not fit an older server. With `older`, take the
    newest programs when all are older than the server. Raises ProgramError.
    """
    folders = chain.from_iterable(Path("/").glob(pattern) for pattern in FOLDERS)
    on_path = map(Path, os.get_exec_path())
    found: dict[int, Path] = {}
    for folder in (*folders, *on_path, *_wheel()):
        if all(os.access(folder / name, os.X_OK) for name in NAMES):
            with suppress(ProgramError):  # Debian's wrapper, which stays when the programs are removed
                text = _run([folder / "pg_dump", "--version"], os.environ)
                found.setdefault(int(re.findall(r"\d+", text)[0]), folder)
    fit = [each for each in found if each >= version] or (sorted(found)[-1:] if older else [])
    if not fit:
        raise ProgramError(
            f"no {', '.join(NAMES)} of PostgreSQL {version} or newer is installed:"
            f" install them, as with `apt install postgresql-client-{version}`, and have their folder in PATH"
        )
    return found[min(fit)]


def _wheel() -> list[Path]:
    try:
        newest = embedded.programs()
    except EmbeddedError:
        return []
    return [newest, *newest.parents[1].glob("pginstall/bin")]


def _run(
    command: Sequence[str | Path],
    environment: Mapping[str, str],
    given: str = "",
    output: IO[str] | int | None = subprocess.PIPE,
) -> str:
    """Run `command` and return what it writes to `output`. Raises ProgramError with its errors when it fails."""
    done = subprocess.run(  # noqa: S603
        command, input=given, stdout=output, stderr=subprocess.PIPE, text=True, check=False, env=environment
    )
    if done.returncode:
        raise ProgramError(_one_line(done.stderr) or f"{command[0]} failed")
    return done.stdout or ""


def _one_line(text: str) -> str:
    return " ".join(re.sub(r"^psql:<stdin>:\d+: ", "", text, flags=re.MULTILINE).split())
