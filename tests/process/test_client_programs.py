"""A shell on the database, a backup of it, and the backup put back."""

import re
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.checkout import PYTHON, Checkout, copied
from tests.support.fork_server import ForkServer
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.process import environment

ROWS = """
    INSERT INTO public."user" (id, fname, lname, email, password_hash)
    VALUES (7, 'Zoë', 'O''Brien', 'zoe@example.com', '$argon2id$x');
    INSERT INTO public."user" (fname, lname, email, password_hash)
    SELECT 'A', 'B', n || '@example.com', '$argon2id$x' FROM generate_series(1, 500) AS n;
"""
ONE_MORE = """
    INSERT INTO public."user" (fname, lname, email, password_hash)
    VALUES ('C', 'D', 'c@d.org', '$argon2id$x')
    RETURNING id
"""
ALL_ROWS = 'SELECT array_agg(u ORDER BY id)::text FROM public."user" AS u'


@pytest.fixture(scope="module")
def checkout(fork_server: ForkServer) -> Iterator[Checkout]:
    with copied() as checkout:
        yield replace(checkout, fork_server=fork_server)


@pytest.fixture(scope="module")
def full(checkout: Checkout, cluster: Cluster) -> TestDatabase:
    """A database with users."""
    database = cluster.create_database()
    assert run(checkout, database.environment, "schema").returncode == 0
    with database.connect() as conn:
        conn.execute(ROWS)
    return database


@pytest.fixture(scope="module")
def backup(checkout: Checkout, full: TestDatabase) -> Path:
    """A backup of it."""
    file = checkout.folder / f"{full.name}.dump"
    done = run(checkout, full.environment, "backup", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    return file


def run(
    checkout: Checkout, settings: Mapping[str, str], *arguments: str, given: str = ""
) -> subprocess.CompletedProcess[str]:
    variables = environment(settings, checkout.folder)
    if checkout.fork_server and settings and not given:  # a fork would take the data and the input of the tests
        return checkout.fork_server.run(["service", *arguments], variables, checkout.folder, 60)
    return subprocess.run(
        [*PYTHON, *arguments], cwd=checkout.folder, env=variables, input=given,
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


def rows(database: TestDatabase) -> str:
    with database.connect() as conn:
        row = conn.execute(ALL_ROWS).fetchone()
    assert row
    return str(row[0])


def the_one_line(ended: subprocess.CompletedProcess[str]) -> str:
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def test_a_backup_is_put_into_a_new_database(checkout: Checkout, cluster: Cluster) -> None:
    old, new = cluster.create_database(), cluster.create_database()
    file = checkout.folder / f"{old.name}.dump"
    assert run(checkout, old.environment, "schema").returncode == 0
    with old.connect() as conn:
        conn.execute(ROWS)
    done = run(checkout, old.environment, "backup", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    done = run(checkout, new.environment, "restore", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert rows(new) == rows(old)
    with new.connect() as conn:
        assert conn.execute(ONE_MORE).fetchone() == (2**31 + 500,)
        readable = "SELECT has_table_privilege('public', 'public.schema_applied', 'SELECT')"
        assert conn.execute(readable).fetchone() == (True,)


def test_a_database_with_rows_is_left_as_it_is(checkout: Checkout, full: TestDatabase, backup: Path) -> None:
    before = rows(full)
    assert 'the table "user" has rows' in the_one_line(run(checkout, full.environment, "restore", str(backup)))
    assert rows(full) == before


@pytest.mark.parametrize("broken", ["cut short", "empty", "missing", "text"])
def test_a_broken_backup_changes_nothing(
    checkout: Checkout, cluster: Cluster, backup: Path, tmp_path: Path, broken: str
) -> None:
    database = cluster.create_database()
    assert run(checkout, database.environment, "schema").returncode == 0
    file = tmp_path / "broken.dump"
    content = {"cut short": backup.read_bytes()[:-1000], "empty": b"", "text": b"SELECT 1;\n"}
    if broken in content:
        file.write_bytes(content[broken])
    the_one_line(run(checkout, database.environment, "restore", str(file)))
    with database.connect() as conn:
        assert conn.execute('SELECT count(*) FROM public."user"').fetchone() == (0,)
        assert conn.execute("SELECT count(*) FROM public.schema_applied").fetchone() == (1,)


def test_privileges_are_kept_as_far_as_their_roles_exist(checkout: Checkout, cluster: Cluster, tmp_path: Path) -> None:
    old, new, here = (cluster.create_database() for _ in range(3))
    file = str(tmp_path / "users.dump")
    assert run(checkout, old.environment, "schema").returncode == 0
    with old.as_superuser() as conn:
        conn.execute("CREATE ROLE gone")
        conn.execute(f'GRANT SELECT ON public."user" TO gone; GRANT SELECT ON public."user" TO {here.name}')
        assert run(checkout, old.environment, "backup", file).returncode == 0
        conn.execute('REVOKE ALL ON public."user" FROM gone; DROP ROLE gone')
    done = run(checkout, new.environment, "restore", file)
    assert done.returncode == 0, done
    assert re.fullmatch(r'.*role "gone" does not exist.*\n', done.stderr)
    with new.connect() as conn:
        allowed = f"SELECT has_table_privilege('{here.name}', 'public.\"user\"', 'SELECT')"
        assert conn.execute(allowed).fetchone() == (True,)


@pytest.mark.parametrize("file", ["there.dump", "no folder/users.dump"])
def test_a_backup_that_cannot_be_written_says_so_and_leaves_no_file(
    checkout: Checkout, full: TestDatabase, tmp_path: Path, file: str
) -> None:
    (tmp_path / "there.dump").write_text("of yesterday")
    assert file.rpartition("/")[2] in the_one_line(run(checkout, full.environment, "backup", str(tmp_path / file)))
    assert [each.read_text() for each in tmp_path.iterdir()] == ["of yesterday"]


def test_more_errors_than_a_pipe_holds_end_no_restore(checkout: Checkout, cluster: Cluster, tmp_path: Path) -> None:
    old, new, role = cluster.create_database(), cluster.create_database(), "r" * 63
    columns = [f"c{number}" for number in range(1500)]
    with old.as_superuser() as conn:
        conn.execute(f"CREATE ROLE {role}; SET ROLE {old.name}; CREATE TABLE wide ({' bool, '.join(columns)} bool)")
        conn.execute(f"GRANT SELECT ({', '.join(columns)}) ON wide TO {role}; RESET ROLE")
        assert run(checkout, old.environment, "backup", str(tmp_path / "wide.dump")).returncode == 0
        conn.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")
    done = run(checkout, new.environment, "restore", str(tmp_path / "wide.dump"))
    assert (done.returncode, done.stderr.count(role)) == (0, 1500)


def test_psql_reaches_the_database_without_showing_its_password(checkout: Checkout, full: TestDatabase) -> None:
    given = "\\! cat /proc/$PPID/cmdline\n\\! printenv PGSSLROOTCERT\nSELECT current_database();\nSELECT 1/0;\n"
    done = run(checkout, {**full.environment, "PGSSLROOTCERT": "/of/the/settings"}, "psql", given=given)
    assert "/of/the/settings\n" in done.stdout
    assert f"dbname={full.name}" in done.stdout
    assert f"\n {full.name}\n" in done.stdout
    assert "division by zero" in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


def test_the_embedded_database_can_be_backed_up_and_put_back(checkout: Checkout) -> None:
    assert run(checkout, {}, "schema").returncode == 0
    before = run(checkout, {}, "psql", given=f"{ROWS}{ALL_ROWS};").stdout
    done = run(checkout, {}, "backup")
    (file,) = checkout.folder.glob("users-*.dump")
    assert done.stdout.startswith(file.name)
    assert "has rows" in run(checkout, {}, "restore", file.name).stderr
    assert run(checkout, {}, "psql", given='TRUNCATE public."user";').returncode == 0
    assert run(checkout, {}, "restore", file.name).returncode == 0
    after = run(checkout, {}, "psql", given=ALL_ROWS + ";").stdout
    assert before.endswith(after)
    assert "Zoë" in after
