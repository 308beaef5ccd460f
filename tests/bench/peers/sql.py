"""The statements of the peers that write SQL, with psycopg's parameters."""

COLUMNS = "id, fname, lname, email, created_at, updated_at"

SELECT_USER = f'SELECT {COLUMNS} FROM "user" WHERE id = %s'

SELECT_USERS = f'SELECT {COLUMNS} FROM "user" WHERE id > %s ORDER BY id LIMIT %s'

INSERT_USER = f"""
    INSERT INTO "user" (fname, lname, email, password_hash)
    VALUES (%s, %s, %s, %s)
    RETURNING {COLUMNS}
"""

UPDATE_USER = f"""
    UPDATE "user"
    SET fname = coalesce(%s, fname), lname = coalesce(%s, lname), email = coalesce(%s, email), updated_at = now()
    WHERE id = %s
    RETURNING {COLUMNS}
"""
