"""SQL, each statement beside the one function that runs it. Every function takes the connection first.

PostgreSQL makes the JSON of a user and it passes through as text: no object is built for a row. A page of
100 takes 0.2 ms this way. The functions answer with that text, or raise UserNotFound.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import IntegrityError, errors

from service.database.connection import PooledConnection
from service.database.errors import DatabaseUnavailable
from service.users.errors import EmailTaken, IdTaken, UserNotFound, UserReferenced

Fields = dict[str, Any]  # of a user: fname, lname, email, password_hash

# The one place that says which columns a client sees, in which order.
COLUMNS = "id, fname, lname, email, created_at, updated_at"
USER_JSON = f"row_to_json((SELECT u FROM (SELECT {COLUMNS}) AS u))::text"  # where a SELECT can name them, it is faster

# The index of schema.sql, and the UNIQUE (email) that an older table may have kept.
UNIQUE_EMAIL = ("user_email_lower_key", "user_email_key")


@contextmanager
def _unique_email() -> Iterator[None]:
    try:
        yield
    except errors.UniqueViolation as exc:
        if exc.diag.constraint_name in UNIQUE_EMAIL:
            raise EmailTaken from exc
        raise


# With their types, as parameters would have those of the columns: when somebody makes a column of a domain and drops
# it again, a prepared statement would fail on the type that is gone.
# The first generated id that is free: rows restored by hand may have taken the next ones, at 1.3 s a million. No two
# callers get the same id. ON CONFLICT, as an error would end the transaction that a pooler needs.
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
    RETURNING id, {USER_JSON}
"""

ATTEMPTS = 5  # at a generated id: each fails only when somebody else inserts that very id at the same moment


def insert_user(conn: PooledConnection, user_id: int | None, fields: Fields) -> tuple[int, str]:
    """Create a user, with a generated id when none is given. Raises IdTaken, EmailTaken."""
    with _unique_email():
        for _ in range(ATTEMPTS if user_id is None else 1):
            if row := conn.row(INSERT_USER, {"id": user_id, **fields}):
                return row[0], row[1]
    if user_id is None:
        raise DatabaseUnavailable("somebody else takes every id that is generated")
    raise IdTaken


# One value, as a row for each user cost PostgreSQL a quarter more, and the thread that fetched them a third.
ARRAY = "coalesce('[' || string_agg(row_to_json(u)::text, ',') || ']', '[]')"

# min(), as EXISTS may be planned as a scan of the whole table.
SELECT_USERS = f"""
    SELECT users, CASE WHEN (SELECT min(id) FROM public."user" WHERE id > last) IS NOT NULL THEN last END
    FROM (SELECT {ARRAY} AS users, max(id) AS last
          FROM (SELECT {COLUMNS}
                FROM public."user"
                WHERE id > %(after)s
                ORDER BY id
                LIMIT %(limit)s) AS u) AS page
"""


def select_users(conn: PooledConnection, after: int, limit: int) -> tuple[str, int | None]:
    """Return the `limit` users that come after the id `after`, by id; and the last of their ids when there are more."""
    users, last = _found(conn.row(SELECT_USERS, {"after": after, "limit": limit}))
    return users, last


SELECT_USERS_BY_EMAIL = f"""
    SELECT {ARRAY}
    FROM (SELECT {COLUMNS}
          FROM public."user"
          WHERE lower(email) = lower(%(email)s) AND id > %(after)s) AS u
"""


def select_users_by_email(conn: PooledConnection, email: str, after: int) -> str:
    """Return the user with this email, in any case, when it comes after the id `after`: an array of one or none."""
    users: str
    (users,) = _found(conn.row(SELECT_USERS_BY_EMAIL, {"email": email, "after": after}))
    return users


SELECT_USER = f"""
    SELECT row_to_json(u)::text
    FROM (SELECT {COLUMNS}
          FROM public."user"
          WHERE id = %(id)s) AS u
"""


def select_user(conn: PooledConnection, user_id: int) -> str:
    """Return the user."""
    user: str
    (user,) = _found(conn.row(SELECT_USER, {"id": user_id}))
    return user


# One statement for any set of fields: two changes of different fields at once are both kept.
UPDATE_USER = f"""
    UPDATE public."user"
    SET fname         = coalesce(%(fname)s::text, fname),
        lname         = coalesce(%(lname)s::text, lname),
        email         = coalesce(%(email)s::text, email),
        password_hash = coalesce(%(password_hash)s::text, password_hash),
        updated_at    = now()
    WHERE id = %(id)s
    RETURNING {USER_JSON}
"""


def update_user(conn: PooledConnection, user_id: int, fields: Fields) -> str:
    """Change the given fields and return the user. Raises EmailTaken."""
    unchanged = {"fname": None, "lname": None, "email": None, "password_hash": None}
    user: str
    with _unique_email():
        (user,) = _found(conn.row(UPDATE_USER, {**unchanged, **fields, "id": user_id}))
    return user


DELETE_USER = """
    DELETE FROM public."user"
    WHERE id = %(id)s
    RETURNING id
"""


def delete_user(conn: PooledConnection, user_id: int) -> None:
    """Delete the user. Call it inside `references`."""
    _found(conn.row(DELETE_USER, {"id": user_id}))


@contextmanager
def references() -> Iterator[None]:
    """Raise UserReferenced when rows of another table need the user: put it around the borrowed connection.

    A deferred constraint fails at the commit, which behind a pooler comes when the connection is returned.
    """
    try:
        yield
    except IntegrityError as exc:  # which one depends on ON DELETE, the columns that refer and PostgreSQL's version
        raise UserReferenced from exc


SELECT_CREDENTIALS = f"""
    SELECT id, password_hash, {USER_JSON}
    FROM public."user"
    WHERE lower(email) = lower(%(email)s)
"""


def select_credentials(conn: PooledConnection, email: str) -> tuple[int, str, str]:
    """Return the id, the password's hash and the JSON of the user with this email."""
    user_id, password_hash, user = _found(conn.row(SELECT_CREDENTIALS, {"email": email}))
    return user_id, password_hash, user


UPDATE_OUTDATED_HASH = """
    UPDATE public."user"
    SET password_hash = %(new)s
    WHERE id = %(id)s AND password_hash = %(old)s
"""


def update_outdated_hash(conn: PooledConnection, user_id: int, old: str, new: str) -> None:
    """Replace a hash, unless the password was changed meanwhile."""
    conn.execute(UPDATE_OUTDATED_HASH, {"id": user_id, "old": old, "new": new})


def _found(row: tuple[Any, ...] | None) -> tuple[Any, ...]:
    if row is None:
        raise UserNotFound
    return row
