from itertools import chain
from secrets import token_hex

import httpx
import pytest

from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.users import User, create


@pytest.fixture(scope="module")
def user_ids(service: object, database: TestDatabase) -> list[int]:  # noqa: ARG001 - the service makes the table
    """The ids of 2001 users, no other user has a larger one."""
    with database.connect() as conn:
        rows = conn.execute(
            """INSERT INTO "user" (fname, lname, email, password_hash)
               SELECT 'A', 'B', n || '@many.example.com', '$argon2id$' FROM generate_series(1, 2001) AS n
               RETURNING id"""
        ).fetchall()
    return [user_id for (user_id,) in rows]


def ids(response: httpx.Response) -> list[int]:
    assert response.status_code == 200, response.text
    return [user["id"] for user in response.json()]


def follow(client: httpx.Client, path: str) -> list[list[int]]:
    """Return the ids of every page from `path` on."""
    response = client.get(path)
    pages = [ids(response)]
    while "next" in response.links:
        response = client.get(response.links["next"]["url"])
        pages.append(ids(response))
    return pages


def test_the_list_is_ordered_by_id_with_every_field_of_every_user(client: httpx.Client) -> None:
    users = [create(client, id=user_id) for user_id in (7, 3, 5)]
    listed = client.get("/users?after=2&limit=3").json()
    assert listed == sorted(users, key=lambda user: int(user["id"]))


@pytest.mark.parametrize(
    ("rest", "sizes"), [(0, [0]), (1, [1]), (2, [2]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])]
)
def test_pages_are_linked_exactly_while_there_is_more(
    client: httpx.Client, user_ids: list[int], rest: int, sizes: list[int]
) -> None:
    pages = follow(client, f"/users?limit=3&after={user_ids[-1 - rest]}")
    assert [len(page) for page in pages] == sizes
    assert list(chain(*pages)) == user_ids[len(user_ids) - rest :]


def test_a_page_has_a_hundred_users_by_default(client: httpx.Client, user_ids: list[int]) -> None:
    response = client.get(f"/users?after={user_ids[0]}")
    assert ids(response) == user_ids[1:101]
    assert ids(client.get(response.links["next"]["url"])) == user_ids[101:201]


def test_a_page_has_a_thousand_users_at_the_most(client: httpx.Client, user_ids: list[int]) -> None:
    assert [len(page) for page in follow(client, f"/users?limit=1000&after={user_ids[0]}")] == [1000, 1000]


def test_a_user_added_behind_the_cursor_disturbs_no_page(client: httpx.Client, user_ids: list[int]) -> None:
    first = client.get(f"/users?limit=2&after={user_ids[9]}")
    create(client, id=11)
    assert ids(client.get(first.links["next"]["url"])) == user_ids[12:14]


def test_the_cursor_may_be_an_id_that_is_gone(client: httpx.Client, user_ids: list[int]) -> None:
    client.delete(f"/users/{user_ids[20]}")
    assert ids(client.get(f"/users?limit=1&after={user_ids[20]}")) == [user_ids[21]]


@pytest.mark.parametrize("after", [1, 2**31, 2**63 - 1])
def test_the_cursor_may_be_any_id(client: httpx.Client, after: int) -> None:
    assert all(user_id > after for user_id in ids(client.get(f"/users?after={after}")))


@pytest.mark.parametrize("query", ["limit=0", "limit=-1", "limit=1001", "after=0", "after=-1", f"after={2**63}"])
def test_what_is_out_of_range_is_refused(client: httpx.Client, query: str) -> None:
    response = client.get(f"/users?{query}")
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [["query", query.partition("=")[0]]]


@pytest.mark.parametrize("case", [str.lower, str.upper, str.title])
def test_an_email_finds_its_user_in_any_case(client: httpx.Client, case: type[str]) -> None:
    user: User = create(client)
    response = client.get("/users", params={"email": case(user["email"])})
    assert response.json() == [user]
    assert "Link" not in response.headers


@pytest.mark.parametrize("email", ["{}", "{}@example.co", "%{}@example.com", "{}@%", "{}@example_com", ""])
def test_an_email_that_is_not_whole_finds_nobody(client: httpx.Client, email: str) -> None:
    name = token_hex(8)
    create(client, email=f"{name}@example.com")
    response = client.get("/users", params={"email": email.format(name)})
    assert (response.status_code, response.json()) == (200, [])


@pytest.mark.parametrize("email", ["a+b@example.com", "a%20b@example.com", "%20ada@example.com", "ada@example.com%0A"])
def test_an_email_with_a_space_is_refused_with_a_hint(client: httpx.Client, email: str) -> None:
    problem = is_problem(client.get(f"/users?email={email}"), 422, "invalid-request")
    (error,) = problem["errors"]
    assert (error["loc"], "%2B" in error["msg"]) == (["query", "email"], True)


def test_an_email_with_a_plus_is_found_as_percent_2b(client: httpx.Client) -> None:
    user = create(client, email=f"a+{token_hex(8)}@example.com")
    assert client.get("/users?email=" + user["email"].replace("+", "%2B")).json() == [user]


def test_an_email_and_a_cursor_narrow_the_list_together(client: httpx.Client) -> None:
    user = create(client)
    assert client.get("/users", params={"email": user["email"], "after": user["id"] - 1}).json() == [user]
    assert client.get("/users", params={"email": user["email"], "after": user["id"]}).json() == []
