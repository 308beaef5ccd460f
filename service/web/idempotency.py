"""Idempotency-Key (draft-ietf-httpapi-idempotency-key-header): a write that is sent again is carried out once.

The statement of a write stores its outcome too, so that there are both or neither. A repeat fails: by the unique key,
or because the first attempt has taken the email or deleted the row. Then the stored outcome is replayed. Of two at
once, the second waits in PostgreSQL for the first. Refusals are not stored: the same key may be sent again.
"""

import asyncio
import hmac
import json
import re
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from hashlib import sha256
from types import TracebackType
from typing import Annotated, Any, NamedTuple, Self

from psycopg import Error
from pydantic import MISSING, AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.database.connection import PooledConnection
from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.database.schema import Upgrade, has_table
from service.database.watchdog import DEADLINE
from service.telemetry import metrics
from service.telemetry.record import RECORD, Record
from service.web.admission import Overloaded
from service.web.endpoint import name_subject, request_content
from service.web.preconditions import Preconditions, etag
from service.web.problems import IdempotencyKeyReused
from service.web.responses import json_text_response
from service.web.stalled_commits import StalledCommits
from service.web.workers import Workers

VISIBLE = re.compile(r"[\x21-\x7e]{1,255}")
QUOTED = re.compile(r'"((?:[\x21\x23-\x5b\x5d-\x7e]|\\["\\])*+)"')  # a string of RFC 9651

LONGEST_QUOTED = 2 * 255 + 2  # when each character has a backslash

KEY_SCHEMA = {"pattern": "^[!#-~][!-~]{0,254}$", "examples": ["8e03978e-40d5-43dd-bc93-6894a57f9324"]}  # for OpenAPI

KEPT = "24 h"
BATCH = 1000  # rows; deleting them takes 10 ms
SWEEP_PERIOD = 60.0  # seconds
SWEEP_TIMEOUT = 5.0  # seconds


def _parse(value: str) -> str:
    """Return the key, which may stand in quotes."""
    value = value.strip(" \t")
    if value.startswith('"') and len(value) <= LONGEST_QUOTED:
        quoted = QUOTED.fullmatch(value)
        value = re.sub(r"\\(.)", r"\1", quoted[1]) if quoted else ""
    if not VISIBLE.fullmatch(value):
        raise PydanticCustomError("idempotency_key", "Input should be one key of 1 to 255 visible ASCII characters")
    return value


class WriteHeaders(BaseModel):
    """The headers of a write."""

    idempotency_key: Annotated[str, AfterValidator(_parse), Field(json_schema_extra=KEY_SCHEMA)] | MISSING = Field(
        default=MISSING,
        description="A new random text for each write. Sent again, it is done once and answered the same.",
    )


class ChangeHeaders(WriteHeaders, Preconditions):
    """The headers of a write that changes one row."""


class Outcome(NamedTuple):
    """What a write has done: the columns that its statement returns, in this order."""

    id: int
    version: int | None  # for the ETag
    body: str | None  # JSON; None for an answer without a body


class Write:
    """One write. Enter it before `connection()`: after an error, it replays the outcome of the first attempt.

    with Write(database, headers, status=201) as write, database.connection() as conn:
        write.outcome = queries.insert_order(conn, write, ...)
    return write.response("/orders")
    """

    outcome: Outcome

    def __init__(self, database: Database, headers: WriteHeaders, status: int = 200) -> None:
        """Answer with `status` when it succeeds."""
        self._database = database
        self._status = status
        self._replayed = False
        key = headers.idempotency_key
        self.key = None if key is MISSING else _key_parameters(key, status)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: type[BaseException] | None, exc: BaseException | None, __: TracebackType | None) -> bool:
        """Return whether there is an outcome to replay in place of the error. Raises IdempotencyKeyReused.

        By now the first connection is back in the pool.
        """
        if self.key is None or not isinstance(exc, Exception) or isinstance(exc, DatabaseFailure):
            return False
        with self._database.connection() as conn:
            stored = conn.fetchone(SELECT_OUTCOME, self.key)
        if stored is None:
            return False
        fingerprint, self._status, *outcome = stored
        if fingerprint != self.key["fingerprint"]:
            raise IdempotencyKeyReused from exc
        self.outcome = Outcome(*outcome)
        self._replayed = RECORD.get().replayed = True
        metrics.WRITES_REPLAYED.inc()
        return True

    def execute(self, conn: PooledConnection, statement: str, parameters: Mapping[str, Any]) -> Outcome | None:
        """Run an INSERT, UPDATE or DELETE that returns an id, a version and a body. Return them, or None for no row."""
        if self.key:
            row = conn.fetchone(keep_outcome(statement), {**parameters, **self.key})
        else:
            row = conn.fetchone(statement, parameters)
        return Outcome(*row) if row else None

    def response(self, path: str = "") -> Response:
        """Return the answer: the same for the first attempt and for each repeat. A new row is at `path`."""
        headers = {"Idempotency-Replayed": "true"} if self._replayed else {}
        if self.outcome.version is not None:
            headers["ETag"] = etag(self.outcome.version)
        if path:
            name_subject(self.outcome.id)
            headers["Location"] = f"{path}/{self.outcome.id}"
        if self.outcome.body is None:
            return Response(status_code=self._status, headers=headers)
        return json_text_response(self.outcome.body, self._status, headers)


def _key_parameters(key: str, status: int) -> dict[str, Any]:
    """Return the parameters of `keep_outcome` for the current request.

    Keys belong to the API key that sent them. The fingerprint covers the password in the body, and its HMAC has the
    Idempotency-Key as its key, which is nowhere stored: so nobody can guess the password from a dump of the table.
    """
    content = json.dumps(request_content(), sort_keys=True, separators=(",", ":"))
    return {
        "key_hash": sha256(f"{RECORD.get().caller}\0{key}".encode()).digest(),
        "fingerprint": hmac.digest(key.encode(), content.encode(), "sha256"),
        "status": status,
    }


@cache
def keep_outcome(statement: str) -> str:
    """Return `statement` extended: it stores its outcome with the key, and fails when the key has one."""
    return f"""
        WITH written (id, version, body) AS (
            {statement}
        ), kept AS (
            INSERT INTO public.idempotency_key
                   (key_hash, fingerprint, status, id, version, body)
            SELECT %(key_hash)s::bytea, %(fingerprint)s::bytea, %(status)s::smallint, id, version, body
            FROM written
        )
        SELECT id, version, body
        FROM written
    """


# The lock makes it a write, which waits for synchronous standbys: after a crash, the primary may show an outcome that
# no standby has, and a failover would lose it.
SELECT_OUTCOME = """
    SELECT fingerprint, status, id, version, body
    FROM public.idempotency_key
    WHERE key_hash = %(key_hash)s::bytea
    FOR KEY SHARE
"""

# An array, because PostgreSQL may plan IN as a scan of the whole table. What another worker is deleting is skipped.
DELETE_OUTDATED = f"""
    WITH deleted AS (
        DELETE FROM public.idempotency_key
        WHERE key_hash = ANY (ARRAY(SELECT key_hash
                                    FROM public.idempotency_key
                                    WHERE created_at < now() - interval '{KEPT}'
                                    ORDER BY created_at
                                    LIMIT {BATCH}
                                    FOR UPDATE SKIP LOCKED))
        RETURNING true
    )
    SELECT count(*)
    FROM deleted
"""


def delete_outdated(database: Database) -> int:
    """Delete a batch of outcomes that are older than KEPT. Return how many there were."""
    with database.connection() as conn:
        [count] = conn.fetchone(DELETE_OUTDATED, {}) or [0]
    return int(count)


async def sweep(workers: Workers, database: Database, stalled_commits: StalledCommits) -> None:
    """Delete outdated outcomes every SWEEP_PERIOD, unless all threads are busy then."""
    RECORD.set(Record("-", "sweep of idempotency keys", ""))
    count = 0
    while True:
        await asyncio.sleep(0 if count == BATCH else SWEEP_PERIOD)
        count = 0
        if workers.idle:
            deadline = time.monotonic() + SWEEP_TIMEOUT
            DEADLINE.set(deadline)
            with suppress(DatabaseFailure, Error, Overloaded):  # the next sweep deletes what this one leaves
                stalled_commits.check()
                count = await workers.run(delete_outdated, {"database": database}, start_by=deadline)


COLUMNS = {
    "key_hash bytea", "fingerprint bytea", "status smallint", "id bigint", "version bigint", "body text",
    "created_at timestamp with time zone",
}  # fmt: skip

UPGRADE = Upgrade(lambda conn, _report: has_table(conn, "public.idempotency_key", COLUMNS))
