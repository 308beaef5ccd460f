"""GET /users with filters, in both orders, compared with a model in Python."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.process.test_same_email import folded
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)

# Each last name has several users, in any case and form; some hold what LIKE or a range may take for another thing.
NAMES = [
    "Strau\u00df", "STRAUSS", "Stra", "a%b", "a_b", "a\\b", "a%", "axb", "\U0010ffff", "a\U0010ffff",
    "a\U0010ffff\U0010ffffz",
    "\u0130stanbul", "istanbul", "e\u0301cole", "\u00c9COLE", "ecole", "van der Berg", "'; --", "\ud7ff", "\ue000",
]  # fmt: skip

INSERT = """
    INSERT INTO "user" (id, fname, lname, email, password_hash, updated_at) VALUES (%s, 'Ada', %s, %s, '$argon2id$', %s)
"""

User = dict[str, Any]


def rows() -> Iterator[User]:
    for number in range(60):
        name = NAMES[number % len(NAMES)]
        moment = BEGIN + timedelta(hours=number * 7 % 60, microseconds=number)
        email = f"{['A+B', 'strass', 'user%', 'USER_'][number % 4]}.{number}@example.com"
        yield {
            "id": number * 3 + 1 if number < 50 else 2**63 - 60 + number,
            "lname": name,
            "email": email,
            "at": moment,
        }


USERS = list(rows())


@pytest.fixture(scope="module")
def service(service: Service, database: TestDatabase) -> Service:
    """A service over exactly these users."""
    with database.connect() as conn:
        conn.cursor().executemany(INSERT, [(user["id"], user["lname"], user["email"], user["at"]) for user in USERS])
    return service


def matches(user: User, filters: dict[str, str]) -> bool:
    """Tell whether a user matches all filters."""
    if "id" in filters and str(user["id"]) not in filters["id"].split(","):
        return False
    if "email" in filters and folded(user["email"]) != folded(filters["email"]):
        return False
    if "updated_since" in filters and user["at"] < datetime.fromisoformat(filters["updated_since"]):
        return False
    prefix = folded(filters.get("q", ""))
    return folded(user["email"]).startswith(prefix) or folded(user["lname"]).startswith(prefix)


texts = st.sampled_from([text for user in USERS for text in (user["lname"], user["email"])])
prefixes = st.builds(lambda text, length, case: case(text)[:length], texts, st.integers(1, 6),
                     st.sampled_from([str, str.upper, str.lower]))  # fmt: skip
offsets = st.sampled_from([UTC, *(datetime.strptime(zone, "%z").tzinfo for zone in ("+02:00", "-09:30"))])
moments = st.builds(lambda user, shift, zone: (user["at"] + timedelta(microseconds=shift)).astimezone(zone).isoformat(),
                    st.sampled_from(USERS), st.integers(-1, 1), offsets)  # fmt: skip
ids = st.lists(st.sampled_from([user["id"] for user in USERS]) | st.integers(1, 200), min_size=1, max_size=30)
filters = st.fixed_dictionaries(
    {},
    optional={
        "q": prefixes | st.characters(exclude_categories=["Cs"], exclude_characters="\0") | st.sampled_from("%_\\"),
        "id": ids.map(lambda found: ",".join(map(str, found))),
        "email": st.sampled_from([user["email"] for user in USERS]).map(str.upper),
        "updated_since": moments,
    },
)


@settings(max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(filters, st.sampled_from([None, "id", "-id"]), st.integers(1, 40), st.none() | st.integers(1, 200))
def test_the_pages_hold_each_match_once_in_the_order_given(
    client: httpx.Client, filters: dict[str, str], order: str | None, limit: int, after: int | None
) -> None:
    given = {**filters, "order": order, "limit": limit, "after": after}
    params: Any = {name: value for name, value in given.items() if value is not None}
    matching = sorted((user["id"] for user in USERS if matches(user, filters)), reverse=order == "-id")
    expected = [each for each in matching if after is None or (each < after if order == "-id" else each > after)]
    found, sizes = [], []
    response = client.get("/users", params=params, headers={"Prefer": "count=exact"})
    while True:
        assert response.status_code == 200, response.text
        assert response.headers["X-Total-Count"] == str(len(matching))
        found += [user["id"] for user in response.json()]
        sizes.append(len(response.json()))
        if "next" not in response.links:
            break
        assert "," not in response.links["next"]["url"]
        response = client.get(response.links["next"]["url"], headers={"Prefer": "count=exact"})
    assert found == expected
    assert sizes == [limit] * (len(expected) // limit) + [len(expected) % limit] * (
        len(expected) % limit > 0 or not expected
    )


@pytest.mark.parametrize("order", ["id", "-id"])
def test_a_list_in_either_order_begins_at_its_end(client: httpx.Client, order: str) -> None:
    found = [user["id"] for user in client.get("/users", params={"order": order}).json()]
    assert found == sorted((user["id"] for user in USERS), reverse=order == "-id")


@pytest.mark.parametrize(
    ("query", "hint"),
    [
        ("order=email", "'id' or '-id'"),
        ("order=", "'id' or '-id'"),
        ("id=", "ids"),
        ("id=1,,2", "ids"),
        ("id=" + ",".join(["1"] * 101), "100 ids"),
        ("q=", "1 to 100"),
        ("q=" + "x" * 101, "1 to 100"),
        ("q=%00", "NUL"),
        ("updated_since=yesterday", "offset"),
        ("updated_since=2026-11-23T08:50:46", "offset"),
        ("updated_since=2026-11-23T08:50:46+01:00", "%2B"),
        ("offset=1", "not permitted"),
        ("Q=x", "not permitted"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_hint(client: httpx.Client, query: str, hint: str) -> None:
    (error,) = is_problem(client.get(f"/users?{query}"), 422, "invalid-request")["errors"]
    assert error["loc"] == ["query", query.partition("=")[0]]
    assert hint in error["msg"]


@pytest.mark.parametrize("fraction", ["", ".1", ".123456", ".123456789"])
@pytest.mark.parametrize("zone", ["Z", "z", "%2B14:00", "-12:00", "%2B23:59", "-00:00"])
def test_every_time_of_rfc_3339_is_taken(client: httpx.Client, fraction: str, zone: str) -> None:
    assert client.get(f"/users?updated_since=2026-11-23T08:50:46{fraction}{zone}").json() == []


def test_the_last_of_a_repeated_parameter_counts(client: httpx.Client) -> None:
    assert [user["id"] for user in client.get("/users?id=1&id=4").json()] == [4]


def test_the_longest_query_with_every_parameter_is_served(client: httpx.Client) -> None:
    params = {"limit": 1, "order": "-id", "id": ",".join([str(2**63 - 1)] * 100), "email": USERS[0]["email"],
              "q": "\U0001f4a9" * 100, "updated_since": "2026-01-01T00:00:00Z", "after": 2**63 - 1}  # fmt: skip
    assert client.get("/users", params=params).json() == []


@pytest.mark.parametrize(
    ("lines", "counted"),
    [
        (["count=exact"], True),
        (["respond-async", "count=exact"], True),
        (['return=minimal, COUNT="exact"; foo'], True),
        (["count=none"], False),
        (["count=none, count=exact"], False),
        (["count=planned"], False),
        (["respond-async"], False),
        ([""], False),
    ],
)
def test_the_matches_are_counted_when_the_client_prefers_it(
    client: httpx.Client, lines: list[str], *, counted: bool
) -> None:
    response = client.get("/users?limit=1&after=7", headers=[("Prefer", line) for line in lines])
    assert response.headers.get("X-Total-Count") == (str(len(USERS)) if counted else None)
    assert response.headers.get("Preference-Applied") == ("count=exact" if counted else None)


def test_head_has_the_headers_of_get_and_no_body(client: httpx.Client) -> None:
    query = "/users?q=stra&limit=1&order=-id"
    headers = {"Prefer": "count=exact"}
    head, get = client.head(query, headers=headers), client.get(query, headers=headers)
    assert (head.status_code, head.content) == (200, b"")
    for name in ("Link", "X-Total-Count", "Preference-Applied", "Content-Length"):
        assert head.headers[name] == get.headers[name]


def test_a_list_that_takes_too_long_is_ended_and_its_connection_serves_on(
    client: httpx.Client, database: TestDatabase
) -> None:
    with database.connect() as conn, conn.transaction():
        conn.execute('LOCK TABLE "user" IN ACCESS EXCLUSIVE MODE')
        is_problem(client.get("/users?q=stra"), 504, "deadline-exceeded")
    for _ in range(8):  # of each connection
        assert client.get("/users?q=nobody").json() == []
