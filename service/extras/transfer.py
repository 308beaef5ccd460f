"""Move users out of the database and into it as NDJSON: one JSON object a line, in UTF-8."""

import multiprocessing
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, Self

import psycopg
from psycopg import Connection
from pydantic import AfterValidator, AwareDatetime, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from service.database.refusals import ConnectFailed, one_line
from service.database.schema import Report
from service.database.sessions import Session
from service.database.sql import utc
from service.extras.new_file import new_file
from service.machine import end_with_parent
from service.users.models import Password, UserReplacement
from service.users.passwords import MAX_HASHES, hash_passwords, is_affordable_hash
from service.web.models import MAX_ID, Text

# Lines that are checked together, and users that are inserted by one statement: its locks last 50 ms. An interrupted
# import repeats at most the hashing of so many passwords, 10 s on two cores.
BATCH = 1000

MOST_NAMED = 20  # bad lines whose rule is reported

# In CSV, COPY writes text as it is unless it holds one of these characters, and JSON escapes control characters.
# Without the version: an imported user gets a new one, as an ETag of before must not match what is changed afterwards.
COPY_USERS = f"""
    COPY (SELECT row_to_json(u)
          FROM (SELECT id, fname, lname, email, password_hash, {utc("created_at")}, {utc("updated_at")}
                FROM public."user"
                ORDER BY id) AS u)
    TO STDOUT (FORMAT csv, DELIMITER E'\\x01', QUOTE E'\\x02')
"""  # noqa: S608 - constants only

# The table of an import: its keys, to find which lines collide with each other and with users.
CREATE_INCOMING = """
    SET LOCAL statement_timeout = 0;
    CREATE TEMPORARY TABLE incoming (
        line   bigint,
        id     bigint,
        email  text,
        folded text COLLATE "C" GENERATED ALWAYS AS (public.user_email_fold(email)) STORED
    ) ON COMMIT DROP
"""

COPY_INCOMING = """
    COPY incoming (line, id, email) FROM STDIN
"""

# The lines that create no user, each with the rule that it breaks; NULL when the user is already there.
SELECT_SETTLED = """
    SELECT line, CASE WHEN line > first_with_email THEN 'email: an earlier line has the same'
                      WHEN line > first_with_id THEN 'id: an earlier line has the same'
                      WHEN user_with_email <> id THEN 'email: another user has it'
                      WHEN user_with_email IS NULL AND user_with_id IS NOT NULL THEN 'id: another user has it' END
    FROM (SELECT line, incoming.id,
                 min(line) OVER (PARTITION BY folded) AS first_with_email,
                 CASE WHEN incoming.id IS NOT NULL
                      THEN min(line) OVER (PARTITION BY incoming.id) END AS first_with_id,
                 by_email.id AS user_with_email,
                 by_id.id AS user_with_id
          FROM incoming
          LEFT JOIN public."user" AS by_email ON public.user_email_fold(by_email.email) COLLATE "C" = folded
          LEFT JOIN public."user" AS by_id ON by_id.id = incoming.id) AS compared
    WHERE line > first_with_email OR line > first_with_id OR user_with_email IS NOT NULL OR user_with_id IS NOT NULL
"""

SELECT_LARGEST_ID = """
    SELECT max(id) FROM incoming
"""

# Move the sequence past the imported ids, as INSERT_USER takes 1.3 s to skip a million of them. Ignore ids of 2^62 or
# more: after such an id the sequence may soon reach its end, and begin again where ids are taken.
ADVANCE_SEQUENCE = """
    SELECT setval(sequence, last)
    FROM (SELECT pg_get_serial_sequence('public."user"', 'id')::regclass AS sequence,
                 (SELECT max(id)
                  FROM (SELECT max(id) FROM public."user" WHERE id < 1::bigint << 62
                        UNION ALL SELECT %(largest)s::bigint) AS largest (id)
                  WHERE id < 1::bigint << 62) AS last) AS found
    WHERE last >= 1::bigint << 31 AND last > coalesce(pg_sequence_last_value(sequence), 0)
"""

INSERT_USERS = """
    INSERT INTO public."user"
           (id, fname, lname, email, password_hash, created_at, updated_at)
    SELECT coalesce(id, nextval((SELECT pg_get_serial_sequence('public."user"', 'id')::regclass))),
           fname, lname, email, password_hash, coalesce(created_at, now()), coalesce(updated_at, created_at, now())
    FROM unnest(%(id)s::bigint[], %(fname)s::text[], %(lname)s::text[], %(email)s::text[], %(password_hash)s::text[],
                %(created_at)s::timestamptz[], %(updated_at)s::timestamptz[])
         AS given (id, fname, lname, email, password_hash, created_at, updated_at)
    ON CONFLICT DO NOTHING
"""


class TransferError(Exception):
    """Users cannot be moved; the text gives the reason in one line, without a value of the file."""


def _check_hash(value: str) -> str:
    if not is_affordable_hash(value):
        raise PydanticCustomError(
            "hash", "Input should be a hash of Argon2id (256 MiB and a second at most) or bcrypt (cost 14 at most)"
        )
    return value


Timestamp = Annotated[AwareDatetime, Field(strict=True)]


class Row(NamedTuple):
    """A line that can be inserted: its number, and the fields of UserImport."""

    line: int
    id: int | None
    fname: str
    lname: str
    email: str
    password: str | None
    password_hash: str | None
    created_at: str | None
    updated_at: str | None


class UserImport(UserReplacement):
    """A line of an import. The id may be one that was generated where the users come from."""

    password: Password | None = None  # type: ignore[assignment]
    password_hash: Annotated[Text, AfterValidator(_check_hash)] | None = None
    id: Annotated[int, Field(strict=True, ge=1, le=MAX_ID)] | None = None
    created_at: Timestamp | None = None
    updated_at: Timestamp | None = None

    @model_validator(mode="after")
    def _has_one_password(self) -> Self:
        if (self.password is None) == (self.password_hash is None):
            raise PydanticCustomError("one_password", "Give either password or password_hash")
        return self


class Progress:
    """Report a number every second, where standard error is a terminal."""

    def __init__(self, report: Report, words: str) -> None:
        self._report = report
        self._words = words
        self._next = time.monotonic() + 1 if sys.stderr.isatty() else float("inf")

    def __call__(self, number: int) -> None:
        """Report that `number` is reached, if a second has passed."""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + 1
            self._report(f"{self._words}: {number}")


def export_users(session: Session, file: Path | None, report: Report) -> None:
    """Write all users, in the order of their ids and from one snapshot, to `file` or to standard output.

    Only the owner may read the file, as it holds the hashes. Raises TransferError; then there is no such file.
    BrokenPipeError when whoever reads standard output has gone.
    """
    progress, count = Progress(report, "users written"), 0
    with _one_line_errors(), _output(file) as output, session.connect() as conn, conn.transaction():
        conn.execute("SET LOCAL statement_timeout = 0")
        with conn.cursor().copy(COPY_USERS) as copy:
            for row in copy:  # the server sends each by itself
                output.write(row)
                count += 1
                progress(count)
    report(f"{count} users written")


def import_users(session: Session, file: Path | None, bad_file: Path | None, report: Report, *, dry_run: bool) -> None:
    """Create a user for each line of `file`, or of standard input, unless the user is already there.

    A user is already there who has the email, and the id if the line has one. All lines are checked before the first
    user is created: bad ones go to `bad_file`, or without it raise TransferError. The users are then created in
    batches: one transaction would block sign-ups with the same emails, and an interrupted one would be lost.
    """
    with (
        _one_line_errors(), _opened(file) as lines, tempfile.TemporaryFile() as spool, session.connect() as conn,
    ):  # fmt: skip
        checked = _check(conn, lines, spool, report)
        bad = checked.bad
        named = [f"line {number}: {bad[number]}" for number in sorted(bad)[:MOST_NAMED]]
        if bad and not bad_file:
            more = f", and {len(bad) - len(named)} more lines are bad" if len(bad) > len(named) else ""
            raise TransferError("\n".join(named) + f"{more}; nothing was changed")
        for each in named:
            report(each)
        with _output(bad_file) if bad else nullcontext() as output:
            if output:
                lines.seek(0)
                output.writelines(line for number, line in enumerate(lines, 1) if number in bad)
            made = checked.new if dry_run else _insert(conn, spool, checked, report)
    report(f"{made} users {'would be ' if dry_run else ''}made, {checked.there} already there, {len(bad)} lines bad")
    if made < checked.new:
        raise TransferError(
            f"lines whose email or id others took meanwhile: {checked.new - made}; import again to learn which"
        )


@dataclass
class Checked:
    """What is known of the lines of an import."""

    bad: dict[int, str] = field(default_factory=dict)  # line number: the rule that the line breaks
    settled: bytearray = field(default_factory=bytearray)  # 1 for each line number that makes no user
    new: int = 0  # users to create
    there: int = 0
    largest_id: int | None = None


def _check(conn: Connection[Any], lines: IO[bytes], spool: IO[bytes], report: Report) -> Checked:
    """Check all lines, and write their rows to `spool` in batches. Costs 30 µs a line of all cores together."""
    progress, number = Progress(report, "lines checked"), 0
    checked = Checked()
    with conn.transaction():
        conn.execute(CREATE_INCOMING)
        with conn.cursor().copy(COPY_INCOMING) as copy:
            for number, rows, bad in _validated(lines):
                for row in rows:
                    copy.write_row((row.line, row.id, row.email))
                pickle.dump(rows, spool)
                checked.bad |= bad
                checked.new += len(rows)
                progress(number)
        conn.execute("ANALYZE incoming")
        checked.largest_id = conn.execute(SELECT_LARGEST_ID).fetchone()[0]  # type: ignore[index]
        checked.settled = bytearray(number + 1)
        for settled, rule in conn.cursor().stream(SELECT_SETTLED):
            checked.settled[settled] = 1
            checked.new -= 1
            if rule:
                checked.bad[settled] = rule
            else:
                checked.there += 1
    return checked


def _validated(lines: IO[bytes]) -> Iterator[tuple[int, list[Row], dict[int, str]]]:
    """Yield the results of `_validate` in order. Processes do it, on every core: threads would share one."""
    context = multiprocessing.get_context("spawn")
    waiting = deque[Future[tuple[int, list[Row], dict[int, str]]]]()
    with ProcessPoolExecutor(MAX_HASHES, context, _begin_process) as pool:
        first = 1
        while batch := list(islice(lines, BATCH)):
            waiting.append(pool.submit(_validate, first, batch))
            first += len(batch)
            if len(waiting) > 2 * MAX_HASHES:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _begin_process() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    end_with_parent(signal.SIGKILL)


def _validate(first: int, lines: list[bytes]) -> tuple[int, list[Row], dict[int, str]]:
    """Return the number of the last line, the rows of the good ones, and the rule that each bad one breaks."""
    rows: list[Row] = []
    bad: dict[int, str] = {}
    for number, line in enumerate(lines, first):
        try:
            user = UserImport.model_validate_json(line)
        except ValidationError as exc:
            if line.strip():
                bad[number] = _rule(exc)
        else:
            rows.append(Row(number, **user.model_dump(mode="json")))
    return first + len(lines) - 1, rows, bad


def _rule(exc: ValidationError) -> str:
    """Return which field breaks which rule, and no value. The name of an unknown field may be one."""
    error = exc.errors(include_url=False, include_context=False, include_input=False)[0]
    if error["type"] in ("json_invalid", "model_type"):
        return "it is not a JSON object"
    if error["type"] == "extra_forbidden":
        return f"it has an unknown field: known are {', '.join(UserImport.model_fields)}"
    return ": ".join(map(str, (*error["loc"][:1], error["msg"])))


def _insert(conn: Connection[Any], spool: IO[bytes], checked: Checked, report: Report) -> int:
    """Create the new users, and return how many. Hashes passwords on every core."""
    progress, made, end = Progress(report, "users made"), 0, spool.tell()
    conn.execute(ADVANCE_SEQUENCE, {"largest": checked.largest_id})
    spool.seek(0)
    while spool.tell() < end:
        rows = pickle.load(spool)  # noqa: S301 - written above
        if new := [row for row in rows if not checked.settled[row.line]]:
            hashes = iter(hash_passwords(row.password for row in new if row.password))
            columns = {name: [getattr(row, name) for row in new] for name in UserImport.model_fields}
            columns["password_hash"] = [row.password_hash or next(hashes) for row in new]
            made += conn.execute(INSERT_USERS, columns).rowcount
            progress(made)
    return made


@contextmanager
def _opened(file: Path | None) -> Iterator[IO[bytes]]:
    """Open `file`, or a temporary copy of what cannot be read twice."""
    with file.open("rb") if file else os.fdopen(os.dup(sys.stdin.fileno()), "rb") as source:
        if source.seekable():
            yield source
            return
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(source, copy)
            copy.seek(0)
            yield copy


@contextmanager
def _output(file: Path | None) -> Iterator[IO[bytes]]:
    """Write a new file, or standard output."""
    with new_file(file, TransferError) if file else nullcontext(sys.stdout.buffer) as output:
        yield output
        output.flush()


@contextmanager
def _one_line_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise TransferError(f"{exc.filename}: {exc.strerror}" if exc.filename else str(exc.strerror)) from exc
    except psycopg.Error as exc:  # not all of it: its detail and its context may have values
        raise TransferError(f"{exc.diag.message_primary or one_line(exc)}: when that is mended, run it again") from exc
    except (ConnectFailed, BrokenExecutor) as exc:
        raise TransferError(one_line(exc)) from exc
