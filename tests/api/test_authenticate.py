import httpx
import pytest
from argon2 import PasswordHasher

from tests.support.postgres import TestDatabase
from tests.support.users import User, create, signs_in

pytestmark = pytest.mark.real_hashes

TODAYS_HASH = "$argon2id$v=19$m=19456,t=2,p=1$"


@pytest.fixture
def user(client: httpx.Client) -> User:
    return create(client)


def stored_hash(database: TestDatabase, user: User) -> str:
    with database.connect() as conn:
        row = conn.execute('SELECT password_hash FROM "user" WHERE id = %s', (user["id"],)).fetchone()
    assert row
    return str(row[0])


def test_good_credentials_are_answered_with_the_user(client: httpx.Client, user: User) -> None:
    credentials = {"email": user["email"].upper(), "password": "correct horse"}
    response = client.post("/users/authenticate", json=credentials)
    assert (response.status_code, response.json()) == (200, user)


def test_an_unknown_email_is_answered_like_a_wrong_password(client: httpx.Client, user: User) -> None:
    wrong = client.post("/users/authenticate", json={"email": user["email"], "password": "wrong horse"})
    unknown = client.post("/users/authenticate", json={"email": "nobody@example.com", "password": "wrong horse"})
    assert wrong.status_code == unknown.status_code == 401
    assert wrong.content == unknown.content
    assert wrong.json()["code"] == "wrong-credentials"
    assert set(wrong.headers) == set(unknown.headers)


@pytest.mark.parametrize(
    "hasher", [PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1), PasswordHasher(parallelism=4)]
)
def test_an_older_hash_is_made_anew_at_the_next_good_login(
    client: httpx.Client, database: TestDatabase, user: User, hasher: PasswordHasher
) -> None:
    old = hasher.hash("correct horse")
    with database.connect() as conn:
        conn.execute('UPDATE "user" SET password_hash = %s WHERE id = %s', (old, user["id"]))
    assert not signs_in(client, user["email"], "wrong horse")
    assert stored_hash(database, user) == old
    assert signs_in(client, user["email"])
    new = stored_hash(database, user)
    assert new.startswith(TODAYS_HASH)
    assert signs_in(client, user["email"])
    assert stored_hash(database, user) == new
    assert client.get(f"/users/{user['id']}").json() == user


def test_a_right_password_is_right_though_its_new_hash_cannot_be_stored(
    client: httpx.Client, database: TestDatabase, user: User
) -> None:
    old = PasswordHasher(time_cost=1, memory_cost=8192, parallelism=1).hash("correct horse")
    with database.connect() as conn:
        conn.execute('UPDATE "user" SET password_hash = %s WHERE id = %s', (old, user["id"]))
        with conn.transaction():
            conn.execute('SELECT FROM "user" WHERE id = %s FOR UPDATE', (user["id"],))
            assert signs_in(client, user["email"])
    assert stored_hash(database, user) == old


def test_equal_passwords_are_stored_as_different_hashes(client: httpx.Client, database: TestDatabase) -> None:
    hashes = [stored_hash(database, create(client)) for _ in range(2)]
    assert all(stored.startswith(TODAYS_HASH) for stored in hashes)
    assert hashes[0] != hashes[1]
