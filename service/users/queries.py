"""SQL: each statement stands above the one function that runs it.

PostgreSQL makes the JSON of a user, and the functions return it as text or raise UserNotFound: Python builds no
object for a row. A page of 100 users takes 0.3 ms.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from psycopg import IntegrityError, errors
from pydantic import MISSING

from service.database.connection import PooledConnection
from service.database.errors import DatabaseUnavailable
from service.database.sql import utc
from service.users.errors import EmailTaken, IdTaken, TooManyAttempts, UserNotFound, UserReferenced
from service.users.models import Page
from service.web.idempotency import Outcome, Write
from service.web.preconditions import VERSION_MATCHES, PreconditionFailed, Preconditions

Fields = dict[str, Any]  # of a user: fname, lname, email, password_hash

# The columns that a client sees, in this order.
COLUMNS = f"id, fname, lname, email, {utc('created_at')}, {utc('updated_at')}"
USER_JSON = f"row_to_json((SELECT u FROM (SELECT {COLUMNS}) AS u))::text"  # for RETURNING; a subquery is faster

SAME_EMAIL = 'public.user_email_fold(email) COLLATE "C" = public.user_email_fold(%(email)s)'

# The indexes of schema.sql, and the UNIQUE (email) of an older table.
UNIQUE_EMAIL = ("user_email_folded_key", "user_email_lower_key", "user_email_key")


@contextmanager
def _raise_email_taken() -> Iterator[None]:
    try:
        yield
    except errors.UniqueViolation as exc:
        if exc.diag.constraint_name in UNIQUE_EMAIL:
            raise EmailTaken from exc
        raise


# The subquery skips generated ids that are taken, as those of restored rows may be: a million of them take 1.3 s.
# ON CONFLICT DO NOTHING, because an error would end the transaction, if the statement is in one.
# The casts to text keep a prepared statement valid when somebody gives a column a domain type and drops it again.
INSERT_USER = f"""
    INSERT INTO public."user"
           (id, fname, lname, email, password_hash)
    VALUES (coalesce(%(id)s, (
                SELECT id
                FROM (SELECT nextval((SELECT pg_get_serial_sequence('public."user"', 'id')::regclass)) AS id
                      FROM (SELECT generate_series(1, 2147483647)) AS attempts) AS generated
                WHERE NOT EXISTS (SELECT FROM public."user" AS taken WHERE taken.id = generated.id)
                LIMIT 1)),
            %(fname)s::text, %(lname)s::text, %(email)s::text, %(password_hash)s::text)
    ON CONFLICT (id) DO NOTHING
    RETURNING id, version, {USER_JSON}
"""

ATTEMPTS = 5  # with generated ids: one fails only when another session inserts the same id at the same moment


def insert_user(conn: PooledConnection, write: Write, user_id: int | None, fields: Fields) -> Outcome:
    """Create a user, with a generated id when none is given. Raises IdTaken, EmailTaken."""
    with _raise_email_taken():
        for _ in range(ATTEMPTS if user_id is None else 1):
            if created := write.execute(conn, INSERT_USER, {"id": user_id, **fields}):
                return created
    if user_id is None:
        raise DatabaseUnavailable("another session takes every id that is generated")
    raise IdTaken


# Text that begins with the prefix, as a range, which an index serves: U+10FFFF is the last character, and a name has at
# most 100 after the prefix.
BEGINS = """
        public.user_email_fold({column}) COLLATE "C" BETWEEN public.user_email_fold(%(q)s)
            AND public.user_email_fold(%(q)s) || repeat(chr(1114111), 100)
"""

# The filters of a list, by the names of their parameters in the query.
FILTERS = {
    "id": "id = ANY(string_to_array(%(id)s, ',')::bigint[])",
    "email": SAME_EMAIL,
    "q": f"({BEGINS.format(column='email')} OR {BEGINS.format(column='lname')})",
    "updated_since": "updated_at >= %(updated_since)s::timestamptz",
}

# Filters whose plan must follow the ids when many users match, and the index of the filter when few do.
PLANNED_BY_VALUE = {"q", "updated_since"}

# With less memory PostgreSQL checks every row of a block in place of those that match: a million took 14 s, not 1.6 s.
MORE_MEMORY = "SET LOCAL work_mem = '32MB'"

# PostgreSQL assumes that matches are spread evenly over the ids. Where all are far from the page's beginning, it reads
# every user on the way: 24 s for ten million. End that soon; a second statement reads all matches by a filter's index.
END_SOON = """
    SELECT set_config('statement_timeout', '500ms', true)
    WHERE current_setting('statement_timeout')::interval > interval '500 ms'
"""

# One value for all users: a row for each cost PostgreSQL 25 % more and the thread 33 % more. Reads one user more than
# the page has, to know whether more follow.
FIND_USERS = """
    SELECT '[' || array_to_string(users[1 : %(limit)s], ',') || ']',
           CASE WHEN cardinality(ids) > %(limit)s THEN ids[%(limit)s] END
    FROM (SELECT coalesce(array_agg(row_to_json(u)::text), '{{}}') AS users, array_agg(id) AS ids
          FROM (SELECT {columns}
                FROM public."user"
                WHERE {where}{cursor}
                ORDER BY {key} {direction}
                LIMIT %(limit)s + 1) AS u) AS page
"""

COUNT_USERS = """
    SELECT count(*)
    FROM public."user"
    WHERE {where}
"""


def _where(page: Page) -> str:
    return " AND ".join(["id > 0", *(FILTERS[name] for name in page.filters)])


def find_statement(page: Page, key: str = "id") -> str:
    """Return the statement that finds a page: its text depends on which filters there are, not on their values.

    With the key "id + 0", PostgreSQL cannot follow the ids.
    """
    descending = page.order == "-id"
    return FIND_USERS.format(
        columns=COLUMNS,
        where=_where(page),
        cursor="" if page.after is MISSING else f" AND id {'<' if descending else '>'} %(after)s",
        key=key,
        direction="DESC" if descending else "ASC",
    )


def find_users(conn: PooledConnection, page: Page) -> tuple[str, int | None]:
    """Return the users of a page, and the last of their ids when more follow.

    Costs a second statement when END_SOON ends the first.
    """
    parameters, setup = _parameters_and_setup(page)
    key = "id"
    if setup:
        with suppress(errors.QueryCanceled):
            return _found(conn.fetchone(find_statement(page), parameters, f"{setup}; {END_SOON}"))
        key = "id + 0"
    return _found(conn.fetchone(find_statement(page, key), parameters, setup))


def count_users(conn: PooledConnection, page: Page) -> int:
    """Return how many users match the filters of a page. PostgreSQL reads every match: 2 s for ten million users."""
    [count] = _found(conn.fetchone(COUNT_USERS.format(where=_where(page)), *_parameters_and_setup(page)))
    return int(count)


def _parameters_and_setup(page: Page) -> tuple[dict[str, Any], str]:
    setup = "" if PLANNED_BY_VALUE.isdisjoint(page.filters) else MORE_MEMORY
    return page.model_dump(exclude={"order"}), setup


SELECT_USER = f"""
    SELECT version, {USER_JSON}
    FROM public."user"
    WHERE id = %(id)s
"""


def select_user(conn: PooledConnection, user_id: int) -> tuple[int, str]:
    """Return the version of the user, and the user."""
    return _found(conn.fetchone(SELECT_USER, {"id": user_id}))


# One statement for any set of fields, so that concurrent changes of different fields are both kept.
UPDATE_USER = f"""
    UPDATE public."user"
    SET fname         = coalesce(%(fname)s::text, fname),
        lname         = coalesce(%(lname)s::text, lname),
        email         = coalesce(%(email)s::text, email),
        password_hash = coalesce(%(password_hash)s::text, password_hash),
        updated_at    = now()
    WHERE id = %(id)s AND {VERSION_MATCHES}
    RETURNING id, version, {USER_JSON}
"""


def update_user(conn: PooledConnection, write: Write, user_id: int, fields: Fields, only_if: Preconditions) -> Outcome:
    """Change the given fields. Raises EmailTaken, PreconditionFailed."""
    unchanged = {"fname": None, "lname": None, "email": None, "password_hash": None}
    with _raise_email_taken():
        changed = write.execute(conn, UPDATE_USER, {**unchanged, **fields, "id": user_id, **only_if.parameters})
    return changed or _raise_refusal(conn, user_id, only_if)


DELETE_USER = f"""
    DELETE FROM public."user"
    WHERE id = %(id)s AND {VERSION_MATCHES}
    RETURNING id, NULL::bigint, NULL::text
"""


def delete_user(conn: PooledConnection, write: Write, user_id: int, only_if: Preconditions) -> Outcome:
    """Delete the user. Raises UserReferenced when rows of another table refer to it, and PreconditionFailed."""
    try:
        deleted = write.execute(conn, DELETE_USER, {"id": user_id, **only_if.parameters})
    except IntegrityError as exc:  # its subclass depends on ON DELETE, the columns and PostgreSQL's version
        raise UserReferenced from exc
    return deleted or _raise_refusal(conn, user_id, only_if)


SELECT_VERSION = """
    SELECT version
    FROM public."user"
    WHERE id = %(id)s
"""


def _raise_refusal(conn: PooledConnection, user_id: int, only_if: Preconditions) -> NoReturn:
    """Raise why a user was not changed. This later statement sees changes that the first one waited for."""
    if not only_if.given:
        raise UserNotFound
    raise PreconditionFailed(*_found(conn.fetchone(SELECT_VERSION, {"id": user_id})))


FREE_FAILURES = 5  # of an email, before its next login has to wait
FIRST_WAIT = 5  # seconds; each further failure doubles it
LONGEST_WAIT = 15 * 60  # seconds
FORGET_AFTER = 15 * 60  # seconds after the wait is over, or after the last failure when there is none

EMAIL_HASH = "sha256(convert_to(public.user_email_fold(%(email)s), 'UTF8'))"

# Count the login as failed before its password is hashed, so that parallel ones cannot all be tried; a success deletes
# the row. While the email has to wait, nothing is written: its wait ends when it was to end, whatever comes meanwhile.
# clock_timestamp(), because a parallel login may have written the row after now(), the start of this statement.
# Also delete a few outdated rows of others.
CLAIM_LOGIN = f"""
    WITH swept AS (
        DELETE FROM public.failed_login
        WHERE email_hash IN (SELECT email_hash
                             FROM public.failed_login
                             WHERE retry_at < now() - interval '{FORGET_AFTER} s' AND email_hash <> {EMAIL_HASH}
                             LIMIT 10
                             FOR UPDATE SKIP LOCKED)
    ), waiting AS (
        SELECT retry_at
        FROM public.failed_login
        WHERE email_hash = {EMAIL_HASH} AND retry_at > clock_timestamp()
    ), claimed AS (
        INSERT INTO public.failed_login AS f
               (email_hash, failures, retry_at)
        SELECT {EMAIL_HASH}, 1, now()
        WHERE NOT EXISTS (SELECT FROM waiting)
        ON CONFLICT (email_hash) DO UPDATE
        SET (failures, retry_at) = (
            SELECT failures,
                   clock_timestamp() + CASE WHEN failures < {FREE_FAILURES} THEN interval '0 s'
                                            ELSE least({FIRST_WAIT} * 2.0 ^ least(failures - {FREE_FAILURES}, 20),
                                                       {LONGEST_WAIT}) * interval '1 s' END
            FROM (SELECT CASE WHEN f.retry_at < now() - interval '{FORGET_AFTER} s' THEN 1
                              ELSE f.failures + 1 END AS failures) AS counted)
        WHERE f.retry_at <= clock_timestamp()
        RETURNING true
    )
    SELECT EXISTS (SELECT FROM claimed),
           ceil(extract(epoch FROM (SELECT retry_at FROM waiting) - clock_timestamp()))::int,
           u.id, u.password_hash, u.json
    FROM (VALUES (1)) AS one
    LEFT JOIN (SELECT id, password_hash, {USER_JSON} AS json
               FROM public."user"
               WHERE {SAME_EMAIL}) AS u ON true
"""


def claim_login(conn: PooledConnection, email: str) -> tuple[int, str, str] | None:
    """Return the id, the password hash and the JSON of the user with this email, or None for an unknown one.

    The login counts as failed until `forget_failures`. Raises TooManyAttempts when the email has to wait.
    """
    claimed, wait, *user = _found(conn.fetchone(CLAIM_LOGIN, {"email": email}))
    if not claimed:
        raise TooManyAttempts(wait or FIRST_WAIT)  # None when a parallel login was the last before the wait
    return tuple(user) if user[0] else None


FORGET_FAILURES = f"""
    DELETE FROM public.failed_login
    WHERE email_hash = {EMAIL_HASH}
"""


def forget_failures(conn: PooledConnection, email: str) -> None:
    """Forget the failed logins of this email."""
    conn.fetchone(FORGET_FAILURES, {"email": email})


REPLACE_HASH = """
    UPDATE public."user"
    SET password_hash = %(new)s::text
    WHERE id = %(id)s AND password_hash = %(old)s::text
"""


def replace_hash(conn: PooledConnection, user_id: int, old: str, new: str) -> None:
    """Replace the hash `old`, unless the password was changed in the meantime."""
    conn.fetchone(REPLACE_HASH, {"id": user_id, "old": old, "new": new})


def _found(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    if row is None:
        raise UserNotFound
    return row
