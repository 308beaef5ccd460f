from datetime import datetime, timedelta

import httpx
import pytest

from tests.support.postgres import TestDatabase
from tests.support.users import LARGEST_CLIENT_ID, User, create, new_user, signs_in


@pytest.fixture
def user(client: httpx.Client) -> User:
    return create(client)


def test_a_created_user_is_answered_with_its_location_and_exactly_its_public_fields(client: httpx.Client) -> None:
    body = new_user()
    response = client.post("/users", json=body)
    user = response.json()
    assert response.status_code == 201
    assert response.headers["Location"] == f"/users/{user['id']}"
    assert list(user) == ["id", "fname", "lname", "email", "created_at", "updated_at"]
    assert (user["fname"], user["lname"], user["email"]) == (body["fname"], body["lname"], body["email"])
    assert user["created_at"] == user["updated_at"]
    assert datetime.fromisoformat(user["created_at"]).utcoffset() == timedelta(0)
    assert client.get(response.headers["Location"]).json() == user


@pytest.mark.parametrize("user_id", [77, LARGEST_CLIENT_ID])
def test_an_id_that_the_client_chose_is_used(client: httpx.Client, user_id: int) -> None:
    response = client.post("/users", json=new_user(id=user_id))
    assert (response.json()["id"], response.headers["Location"]) == (user_id, f"/users/{user_id}")


def test_a_taken_id_is_refused_and_changes_nothing(client: httpx.Client, database: TestDatabase) -> None:
    taken = create(client, id=4711)
    response = client.post("/users", json=new_user(id=4711, fname="Other"))
    assert (response.status_code, response.json()["code"]) == (409, "id-taken")
    assert client.get("/users/4711").json() == taken
    with database.connect() as conn:
        assert conn.execute("SELECT count(*) FROM \"user\" WHERE fname = 'Other'").fetchone() == (0,)


@pytest.mark.parametrize("taken", [(1, 1000), (LARGEST_CLIENT_ID, LARGEST_CLIENT_ID)])
def test_a_generated_id_never_meets_one_that_clients_took(
    client: httpx.Client, database: TestDatabase, taken: tuple[int, int]
) -> None:
    first, last = taken
    with database.connect() as conn:
        conn.execute(
            """INSERT INTO "user" (id, fname, lname, email, password_hash)
               SELECT n, 'A', 'B', n || '@taken.example.com', '$argon2id$' FROM generate_series(%s, %s::bigint) AS n
               ON CONFLICT DO NOTHING""",
            (first, last),
        )
    assert all(create(client)["id"] > LARGEST_CLIENT_ID for _ in range(2))


def test_generated_ids_are_distinct_and_fit_a_cursor(client: httpx.Client) -> None:
    ids = [create(client)["id"] for _ in range(3)]
    assert len(set(ids)) == 3
    assert all(1 <= user_id < 2**63 for user_id in ids)


@pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE"])
def test_an_absent_user_is_not_found(client: httpx.Client, method: str) -> None:
    body = {"PUT": new_user(), "PATCH": {"fname": "Ada"}}.get(method)
    response = client.request(method, "/users/999999", json=body)
    assert (response.status_code, response.json()["code"]) == (404, "user-not-found")
    assert client.get("/users/999999").status_code == 404


def test_a_replaced_user_keeps_its_id_and_birthday_and_nothing_else(client: httpx.Client, user: User) -> None:
    body = new_user(fname="Grace", lname="Hopper", password="another horse")
    response = client.put(f"/users/{user['id']}", json=body)
    replaced = response.json()
    assert response.status_code == 200
    assert list(replaced) == list(user)
    assert [replaced[name] for name in ("fname", "lname", "email")] == ["Grace", "Hopper", body["email"]]
    assert (replaced["id"], replaced["created_at"]) == (user["id"], user["created_at"])
    assert datetime.fromisoformat(replaced["updated_at"]) > datetime.fromisoformat(user["updated_at"])
    assert client.get(f"/users/{user['id']}").json() == replaced
    assert signs_in(client, body["email"], "another horse")
    assert not signs_in(client, body["email"], "correct horse")


@pytest.mark.parametrize("missing", ["fname", "lname", "email", "password"])
def test_a_replacement_must_be_whole(client: httpx.Client, user: User, missing: str) -> None:
    body = {name: value for name, value in new_user().items() if name != missing}
    response = client.put(f"/users/{user['id']}", json=body)
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [["body", missing]]
    assert client.get(f"/users/{user['id']}").json() == user


@pytest.mark.parametrize(
    "change", [{"fname": "Grace"}, {"lname": "Hopper"}, {"email": "grace@example.com"}, {"fname": "G", "lname": "H"}]
)
def test_a_change_touches_only_the_given_fields(client: httpx.Client, user: User, change: User) -> None:
    response = client.patch(f"/users/{user['id']}", json=change)
    changed = response.json()
    assert response.status_code == 200
    assert changed == {**user, **change, "updated_at": changed["updated_at"]}
    assert datetime.fromisoformat(changed["updated_at"]) > datetime.fromisoformat(user["updated_at"])
    assert client.get(f"/users/{user['id']}").json() == changed
    assert signs_in(client, changed["email"])


def test_a_changed_password_is_the_only_one_that_signs_in(client: httpx.Client, user: User) -> None:
    changed = client.patch(f"/users/{user['id']}", json={"password": "another horse"}).json()
    assert changed == {**user, "updated_at": changed["updated_at"]}
    assert signs_in(client, user["email"], "another horse")
    assert not signs_in(client, user["email"], "correct horse")


@pytest.mark.parametrize("change", [{}, *({name: None} for name in ("fname", "lname", "email", "password"))])
def test_an_empty_change_is_refused_and_so_is_null(client: httpx.Client, user: User, change: User) -> None:
    response = client.patch(f"/users/{user['id']}", json=change)
    assert response.status_code == 422
    assert {tuple(error["loc"]) for error in response.json()["errors"]} == {("body", *change)}
    assert client.get(f"/users/{user['id']}").json() == user


def test_a_deleted_user_is_gone(client: httpx.Client) -> None:
    user = create(client)
    response = client.delete(f"/users/{user['id']}")
    assert (response.status_code, response.content) == (204, b"")
    assert client.get(f"/users/{user['id']}").status_code == 404
    assert client.delete(f"/users/{user['id']}").status_code == 404
    assert not signs_in(client, user["email"])


def test_the_email_of_a_deleted_user_is_free_again(client: httpx.Client) -> None:
    user = create(client)
    client.delete(f"/users/{user['id']}")
    assert create(client, email=user["email"])["id"] != user["id"]


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH"])
def test_an_email_is_taken_in_every_case(client: httpx.Client, user: User, method: str) -> None:
    other = create(client)
    email = user["email"].upper()
    path = "/users" if method == "POST" else f"/users/{other['id']}"
    response = client.request(method, path, json={"email": email} if method == "PATCH" else new_user(email=email))
    assert (response.status_code, response.json()["code"]) == (409, "email-taken")
    assert client.get(f"/users/{other['id']}").json() == other


@pytest.mark.parametrize("method", ["PUT", "PATCH"])
def test_a_user_may_write_its_own_email_in_another_case(client: httpx.Client, user: User, method: str) -> None:
    email = user["email"].replace("@example", "@EXAMPLE").title()
    body = {"email": email} if method == "PATCH" else new_user(email=email)
    response = client.request(method, f"/users/{user['id']}", json=body)
    assert response.status_code == 200
    assert response.json()["email"].lower() == user["email"]
