"""The statements of the peers that have PostgreSQL make the JSON, with asyncpg's parameters."""

USER = "row_to_json((SELECT u FROM (SELECT id, fname, lname, email, created_at, updated_at) AS u))::text"

SELECT_USER = f'SELECT {USER} FROM "user" WHERE id = $1'

# As an aggregate over `json` values: `json_agg` writes a line break after each, and is no faster.
SELECT_USERS = f"""
    SELECT coalesce('[' || string_agg({USER}, ',') || ']', '[]')
    FROM (SELECT * FROM "user" WHERE id > $1 ORDER BY id LIMIT $2) AS page
"""

INSERT_USER = f"""
    INSERT INTO "user" (fname, lname, email, password_hash)
    VALUES ($1, $2, $3, $4)
    RETURNING {USER}
"""

UPDATE_USER = f"""
    UPDATE "user"
    SET fname = coalesce($1, fname), lname = coalesce($2, lname), email = coalesce($3, email), updated_at = now()
    WHERE id = $4
    RETURNING {USER}
"""
