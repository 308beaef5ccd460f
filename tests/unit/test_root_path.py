import asyncio
from pathlib import Path

import pytest
from fastapi import APIRouter, Response

from service import settings
from service.extras.http.early_queue import EarlyQueue
from service.settings import Settings, SettingsError
from service.web.access import Access, allow
from service.web.admission import Admission
from service.web.routing import endpoint_route
from tests.support.asgi import runtime

ADMISSION = Admission(1, backlog=0, name="threads", queue_length=0, queue_wait=1)


@allow("read")
def read_user() -> Response:
    return Response()


@pytest.fixture
def early_queue() -> EarlyQueue:
    router = APIRouter(route_class=endpoint_route(runtime(ADMISSION)))
    router.get("/users/{user_id}")(read_user)
    return EarlyQueue(ADMISSION, Access(Settings()), router.routes, "/api", traced=False)


@pytest.mark.parametrize("path", [b"/users/1", b"/api/users/1", b"/api/users?limit=1"])
def test_a_read_waits_unparsed_with_and_without_the_root_path(early_queue: EarlyQueue, path: bytes) -> None:
    assert early_queue.matches(b"GET %s HTTP/1.1\r\n\r\n" % path)


@pytest.mark.parametrize("path", [b"/api", b"/apiusers", b"/api/api/users/1", b"/api/livez"])
def test_another_path_does_not_wait_unparsed(early_queue: EarlyQueue, path: bytes) -> None:
    assert not early_queue.matches(b"GET %s HTTP/1.1\r\n\r\n" % path)


@pytest.mark.parametrize("path", ["/users/1", "/api/users/1"])
def test_such_a_read_is_refused_unparsed(early_queue: EarlyQueue, path: str) -> None:
    head = f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode()

    async def refuse() -> bytes:
        return early_queue.refuse(head, "full", 0.0, [])

    assert asyncio.run(refuse()).startswith(b"HTTP/1.1 503 ")


@pytest.mark.parametrize("given", ["api", "/api", "/api/"])
def test_a_root_path_is_taken_with_and_without_its_slashes(given: str) -> None:
    assert settings.load({"ROOT_PATH": given}, Path("none")).root_path == "/api"


def test_a_root_path_of_a_slash_is_none() -> None:
    assert settings.load({"ROOT_PATH": "/"}, Path("none")).root_path == ""


@pytest.mark.parametrize("given", ["a b", "/a?b", "https://example.com/api", "/a//b", "/{a}"])
def test_a_root_path_that_is_no_path_stops_the_start(given: str) -> None:
    with pytest.raises(SettingsError, match="ROOT_PATH="):
        settings.load({"ROOT_PATH": given}, Path("none"))
