"""ETag, If-Match and If-None-Match: a change that somebody else made meanwhile is never lost."""

import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.users import create, new_user

CHANGES = ["PUT", "PATCH", "DELETE"]
NEW_NAME = {"fname": "Augusta"}


@pytest.fixture
def path(client: httpx.Client) -> str:
    """The path of a new user."""
    return f"/users/{create(client)['id']}"


def etag(client: httpx.Client, path: str) -> str:
    return client.get(path).headers["ETag"]


def change(client: httpx.Client, method: str, path: str, **headers: str) -> httpx.Response:
    """Change a user; the names of headers are written with underscores."""
    body = {"PUT": new_user(), "PATCH": NEW_NAME, "DELETE": None}[method]
    return client.request(method, path, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def is_failed(response: httpx.Response, current: str) -> None:
    """Assert that a precondition failed, and that the answer has the current ETag."""
    is_problem(response, 412, "precondition-failed")
    assert response.headers["ETag"] == current


def test_every_answer_with_a_user_has_its_etag_which_each_change_renews(client: httpx.Client) -> None:
    created = client.post("/users", json=new_user())
    path, tags = created.headers["Location"], [created.headers["ETag"]]
    assert etag(client, path) == client.head(path).headers["ETag"] == tags[0]
    for method in ("PUT", "PATCH", "PATCH"):
        tags.append(change(client, method, path).headers["ETag"])
        assert etag(client, path) == tags[-1]
    assert len(set(tags)) == 4
    assert all(tag.startswith('"') for tag in tags), "strong"


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_read_with_the_current_etag_is_answered_304_without_a_body(
    client: httpx.Client, path: str, method: str
) -> None:
    tag = etag(client, path)
    for header in (tag, f"W/{tag}", "*", f'"1", {tag}'):
        answer = client.request(method, path, headers={"If-None-Match": header})
        assert (answer.status_code, answer.content) == (304, b"")
        assert (answer.headers["ETag"], answer.headers["Cache-Control"]) == (tag, "no-store")
    assert client.request(method, path, headers={"If-None-Match": '"1"'}).status_code == 200


def test_a_read_of_another_version_than_asked_for_fails(client: httpx.Client, path: str) -> None:
    is_failed(client.get(path, headers={"If-Match": '"1"'}), etag(client, path))
    assert client.get(path, headers={"If-Match": etag(client, path)}).status_code == 200


@pytest.mark.parametrize("method", CHANGES)
def test_a_change_is_made_only_to_the_version_it_is_meant_for(client: httpx.Client, path: str, method: str) -> None:
    tag, user = etag(client, path), client.get(path).json()
    for headers in (
        {"If_Match": '"1"'},
        {"If_Match": f"W/{tag}"},
        {"If_Match": f'"x{tag[1:]}'},
        {"If_None_Match": tag},
        {"If_None_Match": f"W/{tag}"},
        {"If_None_Match": "*"},
        {"If_Match": tag, "If_None_Match": "*"},
    ):
        is_failed(change(client, method, path, **headers), tag)
    assert (etag(client, path), client.get(path).json()) == (tag, user), "nothing was changed"
    assert change(client, method, path, If_Match=f'"1", {tag}', If_None_Match='"1"').is_success


@pytest.mark.parametrize("method", CHANGES)
def test_a_star_matches_every_user_there_is(client: httpx.Client, path: str, method: str) -> None:
    assert change(client, method, path, If_Match="*").is_success


@pytest.mark.parametrize("headers", [{"If_Match": "*"}, {"If_Match": '"1"'}, {"If_None_Match": "*"}])
@pytest.mark.parametrize("method", ["GET", *CHANGES])
def test_a_user_that_is_missing_is_not_found_whatever_the_preconditions(
    client: httpx.Client, method: str, headers: dict[str, str]
) -> None:
    send: Callable[..., Any] = change if method != "GET" else lambda client, _, path, **__: client.get(path)
    is_problem(send(client, method, "/users/999999", **headers), 404, "user-not-found")


def test_tags_in_several_lines_are_one_list(client: httpx.Client, path: str) -> None:
    lines = [("If-Match", '"1"'), ("If-Match", etag(client, path))]
    assert client.patch(path, json=NEW_NAME, headers=lines).status_code == 200


@pytest.mark.parametrize("header", ["If-Match", "If-None-Match"])
def test_a_tag_without_quotes_is_refused_with_how_it_is_written(client: httpx.Client, path: str, header: str) -> None:
    for answer in (
        client.get(path, headers={header: "12"}),
        client.patch(path, json=NEW_NAME, headers={header: "12"}),
    ):
        (error,) = is_problem(answer, 422, "invalid-request")["errors"]
        assert error["loc"] == ["header", header.lower()]
        assert '"12"' in error["msg"]


def test_a_change_by_a_release_that_knows_no_versions_is_noticed(
    client: httpx.Client, database: TestDatabase, path: str
) -> None:
    tag = etag(client, path)
    with database.connect() as conn:
        conn.execute("UPDATE \"user\" SET fname = 'Grace' WHERE id = %s", [path.rpartition("/")[2]])
    is_failed(change(client, "PATCH", path, If_Match=tag), etag(client, path))


def test_a_user_made_again_with_the_same_id_has_another_etag(client: httpx.Client) -> None:
    path = f"/users/{create(client, id=77)['id']}"
    tag = etag(client, path)
    client.delete(path)
    create(client, id=77)
    assert etag(client, path) != tag


def test_a_version_that_a_restore_undid_is_not_given_again(client: httpx.Client, database: TestDatabase) -> None:
    """Or a client that read what the restore undid would change what came after, unaware."""
    path = f"/users/{create(client, id=78)['id']}"
    with database.connect() as conn:
        conn.execute('CREATE TABLE backup AS SELECT * FROM "user" WHERE id = 78')
        undone = [change(client, "PATCH", path).headers["ETag"] for _ in range(3)]
        conn.execute('DELETE FROM "user" WHERE id = 78')
        conn.execute('INSERT INTO "user" SELECT * FROM backup')
        conn.execute("DROP TABLE backup")
    assert change(client, "PATCH", path).headers["ETag"] not in undone
    is_failed(change(client, "PATCH", path, If_Match=undone[0]), etag(client, path))


def test_of_changes_at_once_that_read_before_they_write_none_is_lost(
    service: Service, client: httpx.Client, record_figure: Callable[[str], None]
) -> None:
    """Each client increments the same number again and again. LOST_UPDATES=64x200 is the whole test, 9 minutes."""
    clients, increments = map(int, os.environ.get("LOST_UPDATES", "8x8").split("x"))
    path = f"/users/{create(client, fname='0')['id']}"

    def increment(seed: int) -> int:
        pause, tries, done = random.Random(seed), 0, 0
        with httpx.Client(base_url=service.url, timeout=60) as own:
            while done < increments:
                read = own.get(path)
                body = {"fname": str(int(read.json()["fname"]) + 1)}
                answer = own.patch(path, json=body, headers={"If-Match": read.headers["ETag"]})
                assert answer.status_code in (200, 412), answer.text
                done += answer.is_success
                tries += 1
                if not answer.is_success:
                    time.sleep(pause.random() * 0.001 * clients)
        return tries

    with ThreadPoolExecutor(clients) as threads:
        tries = sum(threads.map(increment, range(clients)))
    assert client.get(path).json()["fname"] == str(clients * increments)
    assert tries > clients * increments, "none came between another's read and write"
    record_figure(f"lost updates: {clients} clients, {clients * increments} increments in {tries} tries, none lost")
