"""Who may do what: decided from a request's head alone, and declared by every route."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI
from starlette.responses import Response
from starlette.routing import Mount, Route, WebSocketRoute

from service.app import create_app
from service.settings import Settings
from service.web.access import Access, UnknownHost, allow
from service.web.routing import EventLoopRoute, endpoint_route


def asked(host: str = "localhost:8000", peer: str | None = "127.0.0.1", path: str = "/users", **headers: str) -> Any:
    """Return the scope of a request."""
    sent = [(b"host", host.encode("latin-1")), *((name.encode(), value.encode()) for name, value in headers.items())]
    return {
        "headers": sent, "client": (peer, 1) if peer else None, "path": path, "http_version": "1.1",
    }  # fmt: skip


def is_answered(scope: Any, settings: Settings | None = None) -> bool:
    """Return whether a service with these settings, and no keys, answers."""
    try:
        Access(settings or Settings()).authorize(scope, "write")
    except UnknownHost:
        return False
    return True


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:8000",
        "127.0.0.1",
        "127.0.0.1:1",
        "[::1]",
        "[::1]:8000",
        "app.localhost",
        "a.b.localhost:1",
    ],
)
def test_without_keys_a_name_of_this_machine_is_answered(host: str) -> None:
    assert is_answered(asked(host))


@pytest.mark.parametrize(
    "host",
    [
        "", ":8000", "evil.example.com", "localhost.evil.example.com", "evil-localhost", "127.0.0.1.evil.example.com",
        "127.0.0.1:80:80", "::1", "[::1", "192.0.2.1", "localhost\n", "x@localhost", ".localhost", "127.0.0.11", "\xff",
    ],
)  # fmt: skip
def test_without_keys_no_other_name_is_answered(host: str) -> None:
    assert not is_answered(asked(host))


def test_a_name_of_allowed_hosts_is_answered_and_no_name_below_it() -> None:
    settings = Settings(allowed_hosts=" Users.example.com ,[2001:db8::1]")
    assert is_answered(asked("users.example.com:80"), settings)
    assert is_answered(asked("[2001:DB8::1]:80"), settings)
    assert not is_answered(asked("a.users.example.com"), settings)


@pytest.mark.parametrize(
    ("peer", "answered"),
    [
        ("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("::ffff:127.0.0.1", True),
        ("192.0.2.1", False), ("::1234", False), ("10.0.0.127", False), ("", False), (None, False),
    ],
)  # fmt: skip
def test_without_keys_only_this_machine_is_answered(peer: str | None, answered: bool) -> None:  # noqa: FBT001
    assert is_answered(asked(peer=peer)) == answered


@pytest.mark.parametrize("name", ["forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"])
def test_without_keys_a_proxy_is_not_answered(name: str) -> None:
    assert not is_answered(asked(**{name: ""}))


def test_without_keys_an_nginx_that_adds_no_header_is_not_answered() -> None:
    assert not is_answered(asked("127.0.0.1:8000") | {"http_version": "1.0"})


def test_a_probe_is_answered_under_every_name() -> None:
    assert is_answered(asked("10.0.0.7:8000", "10.0.0.1", "/readyz"))


async def nothing(*_: object) -> Response:
    return Response()


def test_an_endpoint_that_declares_no_scope_is_no_route() -> None:
    async def endpoint() -> None: ...

    def on_a_thread() -> None: ...

    with pytest.raises(TypeError, match="endpoint declares no scope"):
        EventLoopRoute("/new", endpoint)
    with pytest.raises(TypeError, match="on_a_thread declares no scope"):
        APIRouter(route_class=endpoint_route(None)).get("/new")(on_a_thread)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="admin"):
        allow("admin")


def include(app: FastAPI) -> None:
    router = APIRouter()
    router.get("/new")(allow("read")(nothing))
    app.include_router(router)


@pytest.mark.parametrize(
    "add",
    [
        include,
        lambda app: app.router.routes.append(Route("/new", allow("read")(nothing))),
        lambda app: app.router.routes.append(WebSocketRoute("/new", nothing)),
        lambda app: app.mount("/new", nothing),
        lambda app: app.router.routes.append(Mount("/new", routes=[])),
    ],
    ids=["a router", "a route of Starlette", "a web socket", "an application", "a mount"],
)
def test_a_route_of_another_class_stops_the_start(
    add: Callable[[FastAPI], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.telemetry.log.configure", lambda *_: None)  # the log of this process is pytest's
    app = create_app(Settings())
    add(app)

    async def start() -> None:
        async with app.router.lifespan_context(app):
            pass

    with pytest.raises(TypeError, match="declares no scope"):
        asyncio.run(start())


def test_a_web_socket_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.telemetry.log.configure", lambda *_: None)
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(create_app(Settings())({**asked(path="/chat"), "type": "websocket"}, receive, send))
    assert [message["type"] for message in sent] == ["websocket.close"]
