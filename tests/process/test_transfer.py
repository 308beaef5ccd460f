"""Users that are exported to NDJSON and imported from it: the real command, and its parts where it has many cases."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bcrypt
import httpx
import pytest
from argon2 import PasswordHasher

from service import settings as environment
from service.app import UPGRADES
from service.database.sessions import Session
from service.extras.transfer import TransferError, export_users, import_users
from service.startup import prepare_server
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import CHECKOUT, Service
from tests.support.process import environment as machine
from tests.support.users import new_user, signs_in

pytestmark = pytest.mark.usefixtures("forked")  # the services; the commands are real

LINES = 4_000
FIRST_ID = 2**31 + 1_000_000  # of those that were generated elsewhere
HASH = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"
BCRYPT = bcrypt.hashpw(b"correct horse", bcrypt.gensalt(4)).decode()
SECRETS = ("hunter2-hunter2", "secret@example.com")

COUNT = 'SELECT count(*) FROM "user"'
OTHERS = """
    SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


def line(**fields: object) -> str:
    """Return a line of an import that makes a user; None takes a field away."""
    user = {**new_user(), "password": None, "password_hash": HASH, **fields}
    return json.dumps({name: value for name, value in user.items() if value is not None}) + "\n"


def write(file: Path, lines: Iterable[str]) -> Path:
    file.write_text("".join(lines))
    return file


def start(database: TestDatabase, *arguments: object, **options: Any) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "service", *map(str, arguments)], cwd=CHECKOUT, env=machine(database.environment),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options,
    )  # fmt: skip


def run(database: TestDatabase, *arguments: object, status: int = 0, **options: Any) -> tuple[bytes, str]:
    """Run the command; return its output, and the last line of its errors."""
    with start(database, *arguments, **options) as process:
        output, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    return output, errors.decode().splitlines()[-1]


def session(database: TestDatabase) -> Session:
    found = environment.load(database.environment, dotenv=Path(os.devnull))
    return prepare_server(found.server, found, UPGRADES, lambda _line: None)[0]


def imported(session: Session, file: Path, bad: Path | None = None, *, dry_run: bool = False) -> list[str]:
    """Import, and return what was reported."""
    reported: list[str] = []
    import_users(session, file, bad, reported.append, dry_run=dry_run)
    return reported


@pytest.fixture(scope="module")
def target(database: TestDatabase) -> Session:
    """How to connect to the database that the cases share."""
    return session(database)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of users with every kind of id and hash."""
    names = ("Zoë", "O'Brien", '"quoted" \\ back', "Ада", "a" * 100)
    return write(
        tmp_path_factory.mktemp("transfer") / "many.ndjson",
        (
            line(
                id=(number, None, FIRST_ID + number)[number % 3] or None, fname=names[number % 5],
                password_hash=(HASH, BCRYPT)[number % 2], created_at="2024-02-29T12:00:00.5+02:00",
            )
            for number in range(LINES)
        ),
    )  # fmt: skip


def count(database: TestDatabase, query: str = COUNT) -> int:
    with database.connect() as conn:
        row = conn.execute(query).fetchone()
    assert row
    return int(row[0])


def test_what_is_exported_comes_back_byte_for_byte(cluster: Cluster, many: Path, tmp_path: Path) -> None:
    first, second = cluster.create_database(), cluster.create_database()
    file = tmp_path / "users.ndjson"
    assert imported(session(first), many)[-1] == f"{LINES} users made, 0 already there, 0 lines bad"
    assert run(first, "export", file)[1] == f"{LINES} users written"
    assert file.stat().st_mode & 0o777 == 0o600
    users = [json.loads(each) for each in file.read_bytes().splitlines()]
    assert list(users[0]) == ["id", "fname", "lname", "email", "password_hash", "created_at", "updated_at"]
    assert users[0]["created_at"] == users[0]["updated_at"] == "2024-02-29T10:00:00.500000Z"
    ids = [user["id"] for user in users]
    assert ids == sorted(set(ids))
    assert FIRST_ID + LINES - 2 in ids
    with pytest.raises(TransferError, match="exists: choose another name"):
        export_users(session(first), file, print)

    with start(second, "import", "-", stdin=subprocess.PIPE) as process:  # a pipe cannot be read twice
        _, errors = process.communicate(file.read_bytes())
    assert errors.decode().splitlines()[-1] == f"{LINES} users made, 0 already there, 0 lines bad"
    assert run(second, "export")[0] == file.read_bytes()
    with Service(second.environment) as service:
        created = service.client.post("/users", json=new_user()).json()
    assert created["id"] == max(ids) + 1, "the sequence was moved past the ids that came in"
    assert imported(session(second), file) == [f"0 users made, {LINES} already there, 0 lines bad"]


def test_a_reader_that_has_enough_ends_an_export_quietly(cluster: Cluster, many: Path) -> None:
    database = cluster.create_database()
    imported(session(database), many)
    with start(database, "export") as process:
        assert process.stdout
        assert process.stderr
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_an_import_that_was_killed_goes_on_where_it_was(cluster: Cluster, many: Path) -> None:
    database = cluster.create_database()
    session(database)
    with start(database, "import", many) as process:
        workers = until(lambda: children(process.pid), "its worker processes start")
        process.kill()
    until(lambda: not any(map(is_alive, workers)), "they end with it")
    assert count(database) == 0
    same = json.loads(many.read_text().splitlines()[LINES // 2])
    with signing_up(database, same), start(database, "import", many) as process:
        until(lambda: count(database) == LINES // 2, "the batches before are committed")
        process.kill()
    until(lambda: count(database, OTHERS) == 0, "PostgreSQL notices that the import has gone")
    before = count(database)
    assert before in (LINES // 2, LINES // 2 + 1000), "batches are whole, and one may be under way"
    summary = f"{LINES - before} users made, {before} already there, 0 lines bad"
    assert imported(session(database), many) == [summary]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    try:
        return "State:\tZ" not in status.read_text()
    except OSError:
        return False


@contextmanager
def signing_up(database: TestDatabase, user: dict[str, Any], *, commit: bool = False) -> Iterator[None]:
    """Create a user with the same email in a transaction that ends with the block."""
    with database.connect() as conn, conn.transaction(force_rollback=not commit):
        conn.execute(
            'INSERT INTO "user" (fname, lname, email, password_hash) VALUES (%s, %s, %s, %s)',
            ("Ada", "Lovelace", user["email"].upper(), HASH),
        )
        yield


BAD: Mapping[str, str] = {
    "it is not a JSON object": "{broken\n",
    "it is not a JSON object ": "[1]\n",
    "fname: Field required": line(fname=None),
    "fname: Name should have 1 to 100 characters": line(fname=" "),
    "lname: Input should not contain NUL": line(lname="a\0b"),
    "email: Input should be an email address": line(email="secret@example.com.."),
    "password: Value should have at least 8": line(password="hunter2", password_hash=None),
    "Give either password or password_hash": line(password="hunter2-hunter2"),
    "Give either password or password_hash ": line(password_hash=None),
    "password_hash: Input should be a hash": line(password_hash="hunter2-hunter2"),
    "password_hash: Input should be a hash ": line(password_hash="$2b$20" + BCRYPT[6:]),
    "password_hash: Input should be a hash  ": line(password_hash=HASH.replace("m=19456", "m=999999")),
    "id: Input should be greater than or equal to 1": line(id=0),
    "id: Input should be a valid integer": line(id="hunter2-hunter2"),
    "created_at: Input should have timezone info": line(created_at="2024-01-01T00:00:00"),
    "updated_at: Input should be a valid datetime": line(updated_at=1_700_000_000),
    "it has an unknown field": line(**{"hunter2-hunter2": 1}),
    "email: an earlier line has the same": line(email="STRASSE@example.com"),
    "id: an earlier line has the same": line(id=77),
    "email: another user has it": line(id=78, email="Also-Taken@Example.com"),
    "id: another user has it": line(id=2_000_000),
}
GOOD = [line(email="straße@example.com"), line(id=77), line(email="TAKEN@example.com"), "\n"]
TAKEN = [line(id=2_000_000, email="taken@example.com"), line(id=2_000_001, email="also-taken@example.com")]


def test_bad_lines_are_named_and_nothing_changes_or_they_are_set_aside(
    target: Session, database: TestDatabase, tmp_path: Path
) -> None:
    imported(target, write(tmp_path / "taken", TAKEN))
    before = count(database)
    file, aside = write(tmp_path / "users", [*GOOD, *BAD.values()]), tmp_path / "aside"
    with pytest.raises(TransferError) as failed:
        imported(target, file)
    refused = str(failed.value).splitlines()
    assert count(database) == before

    assert imported(target, file, tmp_path / "tried", dry_run=True)[-1] == (
        "2 users would be made, 1 already there, 21 lines bad"
    )
    assert count(database) == before

    *rules, summary = imported(target, file, aside)
    assert summary == "2 users made, 1 already there, 21 lines bad"
    assert count(database) == before + 2
    assert aside.stat().st_mode & 0o777 == 0o600
    assert aside.read_text() == "".join(BAD.values())
    expected = [f"line {number}: {rule.strip()}" for number, rule in enumerate(BAD, 5)]
    pairs = zip(rules, expected, strict=False)
    assert [(rule, begin) for rule, begin in pairs if not rule.startswith(begin)] == []
    assert len(rules) == 20
    assert refused == [*rules[:-1], f"{rules[-1]}, and 1 more lines are bad; nothing was changed"]
    assert not any(secret in rule for rule in rules for secret in SECRETS)


def test_the_command_refuses_a_bad_line_with_one_line(database: TestDatabase, target: Session, tmp_path: Path) -> None:
    assert target
    with start(database, "import", write(tmp_path / "users", [line(), "{\n"])) as process:
        assert process.communicate()[1] == b"line 2: it is not a JSON object; nothing was changed\n"
    assert process.returncode == 1
    assert "No such file" in run(database, "import", tmp_path / "missing", status=1)[1]


def test_who_comes_from_elsewhere_logs_in_and_gets_a_hash_of_today(
    target: Session, database: TestDatabase, tmp_path: Path
) -> None:
    long = "paßwort " * 12
    passwords = {
        bcrypt.hashpw(b"correct horse", bcrypt.gensalt(4, prefix=b"2a")).decode(): "correct horse",
        "$2y" + BCRYPT[3:]: "correct horse",
        bcrypt.hashpw(long.encode()[:72], bcrypt.gensalt(4)).decode(): long,
        PasswordHasher(time_cost=1, memory_cost=65536, parallelism=4).hash("correct horse"): "correct horse",
    }
    lines = {json.loads(each)["email"]: each for each in (line(password_hash=stored) for stored in passwords)}
    plain = new_user(password="plain as day")
    imported(target, write(tmp_path / "users", [*lines.values(), json.dumps(plain)]))
    with Service(database.environment) as service, database.connect() as conn:
        for (email, _), password in zip(lines.items(), passwords.values(), strict=True):
            assert not signs_in(service.client, email, "wrong horse")
            assert signs_in(service.client, email, password)
        assert signs_in(service.client, plain["email"], plain["password"])
        stored = conn.execute(
            'SELECT password_hash FROM "user" WHERE email = ANY(%s)', ([*lines, plain["email"]],)
        ).fetchall()
        assert {row[0][:31] for row in stored} == {HASH[:31]}
        assert signs_in(service.client, next(iter(lines)))
        for unusable in ("$2b$99$x", "$2b$20" + BCRYPT[6:], BCRYPT[:40], "$2b$04$" + "\u0161" * 53):
            conn.execute('UPDATE "user" SET password_hash = %s WHERE email = %s', (unusable, plain["email"]))
            conn.execute("DELETE FROM failed_login")
            assert not signs_in(service.client, plain["email"])


def test_requests_are_answered_while_an_import_runs(cluster: Cluster, many: Path) -> None:
    database = cluster.create_database()
    with Service(database.environment) as service:
        with start(database, "import", many) as process:
            answers: list[httpx.Response] = []
            while process.poll() is None:
                answers.append(service.client.post("/users", json=new_user()))
                answers.append(service.client.get("/users?limit=1"))
            assert process.communicate()[1].decode().splitlines()[-1].startswith(f"{LINES} users made")
        assert {answer.status_code for answer in answers} == {200, 201}
        assert max(answer.elapsed.total_seconds() for answer in answers) < 1
        assert count(database) == LINES + len(answers) // 2


def test_a_user_that_others_make_meanwhile_is_reported(cluster: Cluster, many: Path) -> None:
    database = cluster.create_database()
    session(database)
    with start(database, "import", many) as process:
        with signing_up(database, json.loads(many.read_text().splitlines()[-1]), commit=True):
            until(lambda: count(database) == LINES - 1000, "all batches but the last are committed")
        _, errors = process.communicate()
    assert process.returncode == 1, errors
    assert b"lines whose email or id others took meanwhile: 1;" in errors
    assert count(database) == LINES
