"""A second resource gets everything that users have, with nothing but its own few files."""

import os
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.process.test_schema import waiters
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import CHECKOUT, Service
from tests.support.schemas import prepare
from tests.support.scrape import counted
from tests.support.users import create

SCHEMA = (CHECKOUT / "tests" / "orders" / "schema.sql").read_bytes()
ONE_THREAD = {"WORKER_THREADS": "1", "QUEUE_LENGTH": "0"}
SHORT = {"LOCK_TIMEOUT": "1", "STATEMENT_TIMEOUT": "1.5", "LEAK_THRESHOLD": "2", "REQUEST_DEADLINE": "3"}

SELECT_WAITING = """
    SELECT pid
    FROM pg_locks
    WHERE relation = 'orders'::regclass AND NOT granted
"""


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    """The service with orders, one thread and no queue."""
    prepare(database)
    with database.connect() as conn:
        conn.execute(SCHEMA)
    uvicorn = "-m uvicorn --factory tests.orders.app:create_app --port 0"
    settings = {**database.environment, **ONE_THREAD, **SHORT}
    with Service(settings, argv=[sys.executable, *uvicorn.split()]) as service:
        yield service


@pytest.fixture
def order(client: httpx.Client) -> dict[str, Any]:
    """An order of a new user."""
    response = client.post("/orders", json={"user_id": create(client)["id"], "item": "A book"})
    assert response.status_code == 201, response.text
    assert response.headers["Location"] == f"/orders/{response.json()['id']}"
    found: dict[str, Any] = response.json()
    return found


def test_a_created_order_is_read_and_listed(client: httpx.Client, order: dict[str, Any]) -> None:
    assert list(order) == ["id", "user_id", "item", "created_at"]
    assert client.get(f"/orders/{order['id']}").json() == order
    assert client.get("/orders/").json()[-1] == order
    assert client.get("/orders", params={"after": order["id"]}).json() == []


def test_an_order_that_is_sent_again_with_its_key_is_made_once(client: httpx.Client) -> None:
    body, key = {"user_id": create(client)["id"], "item": "A book"}, {"Idempotency-Key": "an-order"}
    first, again = (client.post("/orders", json=body, headers=key) for _ in range(2))
    assert (again.status_code, again.content, again.headers["Location"]) == (
        201,
        first.content,
        first.headers["Location"],
    )
    assert again.headers["Idempotency-Replayed"] == "true"
    is_problem(client.post("/orders", json={**body, "item": "Another"}, headers=key), 422, "idempotency-key-reused")


@pytest.mark.parametrize(
    ("status", "code", "request_line", "body"),
    [
        (404, "order-not-found", "GET /orders/999", None),
        (422, "invalid-request", "GET /orders/1.0", None),
        (422, "invalid-request", "GET /orders?after=0", None),
        (422, "invalid-request", "POST /orders", {"user_id": 1, "item": ""}),
        (422, "invalid-request", "POST /orders", {"user_id": 1, "item": "A book", "password": "unknown field"}),
        (409, "unknown-user", "POST /orders", {"user_id": 999, "item": "A book"}),
        (405, "method-not-allowed", "DELETE /orders", None),
    ],
)
def test_every_error_is_a_problem(
    client: httpx.Client, status: int, code: str, request_line: str, body: object
) -> None:
    method, path = request_line.split()
    is_problem(client.request(method, path, json=body), status, code)


def test_a_user_with_an_order_cannot_be_deleted(
    client: httpx.Client, database: TestDatabase, order: dict[str, Any]
) -> None:
    path = f"/users/{order['user_id']}"
    is_problem(client.delete(path), 409, "user-referenced")
    with database.connect() as conn:
        conn.execute("DELETE FROM orders WHERE id = %(id)s", order)
    assert client.delete(path).status_code == 204


def test_the_queue_and_the_lock_timeout_apply(service: Service, client: httpx.Client, database: TestDatabase) -> None:
    with database.connect() as conn, ThreadPoolExecutor() as executor, conn.transaction():
        conn.execute("LOCK TABLE orders")
        blocked = executor.submit(httpx.get, f"{service.url}/orders", timeout=30)
        until(lambda: waiters(database) == 1, "the only thread waits for the lock")
        is_problem(client.get("/orders"), 503, "overloaded")
        is_problem(blocked.result(), 504, "deadline-exceeded")
    assert client.get("/orders").status_code == 200


def test_a_request_ends_at_its_deadline_though_the_database_is_silent(
    service: Service, client: httpx.Client, database: TestDatabase
) -> None:
    with database.connect() as conn, ThreadPoolExecutor() as executor, conn.transaction():
        conn.execute("LOCK TABLE orders")
        blocked = executor.submit(httpx.get, f"{service.url}/orders", timeout=30)
        [(pid,)] = until(lambda: conn.execute(SELECT_WAITING).fetchall(), "the request waits for the lock")
        os.kill(pid, signal.SIGSTOP)  # so PostgreSQL cannot end the statement by its own timeouts
        try:
            problem = is_problem(blocked.result(), 504, "deadline-exceeded")
        finally:
            os.kill(pid, signal.SIGCONT)
    assert problem["title"] == "The database did not answer in time"
    until(lambda: client.get("/orders").status_code == 200, "a new connection serves")


def test_the_index_links_to_orders(client: httpx.Client) -> None:
    links = client.get("/").json()
    assert (links["users"], links["orders"]) == ("/users", "/orders")


def test_openapi_has_the_operations_with_their_errors(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    errors = {
        operation["operationId"]: {status for status in operation["responses"] if status >= "400"}
        for path, operations in document["paths"].items()
        if path.startswith("/orders")
        for operation in operations.values()
    }
    always = {"401", "403", "422", "500", "503", "504"}
    assert errors == {
        "createOrder": always | {"400", "408", "409", "413", "415"},
        "listOrders": always,
        "readOrder": always | {"404"},
    }


def test_the_metrics_count_the_route(service: Service, client: httpx.Client, order: dict[str, Any]) -> None:
    def requests() -> float:
        return counted(service, "http_server_request_duration_seconds_count", http_route="/orders/{order_id}")

    before = requests()
    client.get(f"/orders/{order['id']}")
    until(lambda: requests() == before + 1, "the request is counted")
