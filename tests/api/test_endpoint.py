"""Endpoints that somebody adds, with what FastAPI's documentation tells of."""

import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import httpx
import pytest
from fastapi import Body, Depends
from starlette.responses import Response

from service.web.access import allow
from service.web.admission import Admission
from service.web.endpoint import Runtime
from service.web.routing import endpoint_route
from tests.support.asgi import runtime
from tests.support.more_endpoints import Session
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.problems import is_problem
from tests.support.process import Service
from tests.support.scrape import counted
from tests.support.users import create


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    uvicorn = "-m uvicorn --factory tests.support.more_endpoints:create_app --port 0"
    with Service(database.environment, argv=[sys.executable, *uvicorn.split()]) as service:
        yield service


def test_a_dependency_is_solved_and_what_it_yields_is_ended(client: httpx.Client) -> None:
    answer = client.get("/session", headers={"Authorization": "Bearer ada", "User-Agent": "test"})
    assert (answer.status_code, answer.json()) == (200, {"name": "ada", "agent": "test"})
    until(lambda: client.get("/ended").text == "ada", "the dependency has ended")


def test_what_a_dependency_refuses_is_a_problem(client: httpx.Client) -> None:
    refused = client.get("/session", headers={"Authorization": "Basic x"})
    assert is_problem(refused, 401, "unauthorized")["detail"] == "Give a bearer token."
    assert refused.headers["WWW-Authenticate"] == "Bearer"
    problem = is_problem(client.get("/session"), 422, "invalid-request")
    assert problem["errors"][0]["loc"] == ["header", "authorization"]


def test_a_value_becomes_the_response_that_the_route_declares(client: httpx.Client) -> None:
    answer = client.post("/echo", json={"name": "ada", "agent": "test"})
    assert (answer.status_code, answer.json()) == (201, {"name": "ada", "agent": "test"})


def test_a_query_parameter_may_be_repeated(client: httpx.Client) -> None:
    assert client.get("/sum?numbers=1&numbers=2&numbers=3").text == "6"
    is_problem(client.get("/sum?numbers=1&numbers=x"), 422, "invalid-request")


def test_a_name_in_a_path_cannot_forge_a_line_of_the_log(service: Service, client: httpx.Client) -> None:
    assert client.delete("/names/ada%0Aforged").status_code == 204
    until(lambda: " on ada%0Aforged\n" in service.log, "the deletion is logged")
    assert "\nforged" not in service.log


@pytest.mark.parametrize("status", [418, 404, 499, 503])
def test_an_exception_of_any_status_is_a_problem_with_its_own_words(client: httpx.Client, status: int) -> None:
    answer = client.get(f"/teapot/{status}")
    assert answer.status_code == answer.json()["status"] == status
    assert answer.json()["detail"] == "Ask for something else."
    assert answer.headers["X-Request-ID"]


def test_an_exception_of_a_status_without_a_body_has_none(client: httpx.Client) -> None:
    answer = client.get("/teapot/304")
    assert (answer.status_code, answer.content) == (304, b"")


def test_a_body_that_fails_at_its_beginning_is_a_problem(client: httpx.Client) -> None:
    is_problem(client.get("/broken/0"), 500, "internal-error")


def test_a_body_that_fails_later_is_cut_off(client: httpx.Client) -> None:
    with pytest.raises(httpx.RemoteProtocolError):
        client.get("/broken/3")


def test_a_route_of_fastapi_s_own_works(client: httpx.Client) -> None:
    assert client.get("/plain").json() == {"route": "FastAPI's own"}


def test_only_a_marked_endpoint_waits_for_a_core_to_hash_on(service: Service) -> None:
    def waited() -> float:
        return counted(service, "admission_queue_wait_seconds_count", queue="hashing")

    assert service.client.post("/secret", json={"password": "correct horse"}).status_code == 204
    user = create(service.client)
    until(lambda: waited() == 1, "the sign-up is counted")
    path = f"/users/{user['id']}"
    assert service.client.patch(path, json={"fname": "Grace"}).status_code == 200
    assert service.client.patch(path, json={"password": "another horse"}).status_code == 200
    until(lambda: waited() == 2, "the new password is counted")


def test_an_endpoint_must_be_a_plain_def(resources: Runtime) -> None:
    async def wrong() -> None:
        """Would hold the event loop while it waits for the database."""

    with pytest.raises(TypeError, match="wrong runs on a thread: write it with a plain def"):
        endpoint_route(resources)("/wrong", wrong)


def test_headers_and_background_tasks_belong_to_the_response(resources: Runtime) -> None:
    @allow("read")
    def wrong(response: Response) -> None:
        """Would set a header on a response that is not sent."""

    with pytest.raises(TypeError, match="wrong must return a Response"):
        endpoint_route(resources)("/wrong", wrong)


def takes_two(first: Session, second: Session) -> None:
    """FastAPI would look for both in one object."""


def takes_embedded(first: Annotated[Session, Body(embed=True)]) -> None:
    """FastAPI would look for it under its name."""


def takes_another_in_a_dependency(second: Session, _: Annotated[None, Depends(takes_embedded)]) -> None:
    """FastAPI would look for both in one object."""


@pytest.mark.parametrize("wrong", [takes_two, takes_embedded, takes_another_in_a_dependency])
def test_an_endpoint_takes_the_whole_body_as_one_parameter(resources: Runtime, wrong: Callable[..., None]) -> None:
    with pytest.raises(TypeError, match=f"{wrong.__name__} must take the whole body as one parameter"):
        endpoint_route(resources)("/wrong", allow("write")(wrong), methods=["POST"])


@pytest.fixture
def resources() -> Runtime:
    return runtime(Admission(1, backlog=0, name="threads", queue_length=1, queue_wait=1))
