"""Rows of other tables refer to users, in every way that PostgreSQL has; tests/system repeats it on other versions."""

import pytest

from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.users import create

pytestmark = pytest.mark.usefixtures("forked")

NEEDS = [
    'bigint REFERENCES "user"',
    'bigint REFERENCES "user" ON DELETE RESTRICT',
    'bigint REFERENCES "user" DEFERRABLE INITIALLY DEFERRED',
    'bigint NOT NULL REFERENCES "user" ON DELETE SET NULL',
    'bigint DEFAULT 7 REFERENCES "user" ON DELETE SET DEFAULT',
    'bigint CHECK (user_id > 0) CHECK (user_id IS NOT NULL) REFERENCES "user" ON DELETE SET NULL',
]
LETS_GO = {
    'bigint REFERENCES "user" ON DELETE CASCADE': [],
    'bigint REFERENCES "user" ON DELETE SET NULL': [(None,)],
    'bigint REFERENCES "user" ON DELETE SET DEFAULT': [(None,)],
}


def refer(database: TestDatabase, column: str, user_id: int) -> None:
    with database.connect() as conn:
        conn.execute(f'DROP TABLE IF EXISTS "order"; CREATE TABLE "order" (user_id {column})')
        conn.execute('INSERT INTO "order" VALUES (%s)', (user_id,))


@pytest.mark.parametrize("column", NEEDS)
def test_a_user_who_is_needed_stays(service: Service, database: TestDatabase, column: str) -> None:
    user = create(service.client)
    path = f"/users/{user['id']}"
    refer(database, column, user["id"])
    is_problem(service.client.delete(path), 409, "user-referenced")
    assert service.client.get(path).json() == user
    assert service.client.patch(path, json={"email": f"new-{user['email']}"}).status_code == 200
    with database.connect() as conn:
        conn.execute('DELETE FROM "order"')
    assert service.client.delete(path).status_code == 204


@pytest.mark.parametrize("column", LETS_GO)
def test_a_user_whom_others_let_go_is_deleted(service: Service, database: TestDatabase, column: str) -> None:
    user = create(service.client)
    refer(database, column, user["id"])
    assert service.client.delete(f"/users/{user['id']}").status_code == 204
    with database.connect() as conn:
        assert conn.execute('SELECT user_id FROM "order"').fetchall() == LETS_GO[column]


def test_a_trigger_that_keeps_a_user_is_a_rule(service: Service, database: TestDatabase) -> None:
    user = create(service.client)
    with database.connect() as conn:
        conn.execute("""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'no'; END $$;
            CREATE TRIGGER refuse BEFORE DELETE ON "user" FOR EACH ROW EXECUTE FUNCTION refuse()
            """)
        is_problem(service.client.delete(f"/users/{user['id']}"), 409, "rule-violated")
        conn.execute("DROP FUNCTION refuse CASCADE")
