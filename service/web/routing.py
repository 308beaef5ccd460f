"""The classes of routes. Each declares who may call it, and runs its endpoint on a thread or on the event loop."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from service.telemetry.record import RECORD
from service.web.access import ANY, declared_scope
from service.web.endpoint import Endpoint, Runtime


class GuardedRoute(APIRoute):
    """A route whose endpoint has declared with `allow` who may call it."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's
        self.scope = declared_scope(endpoint)  # raises TypeError when there is none
        super().__init__(path, endpoint, **kwargs)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        RECORD.get().route = self.path_format
        scope["app"].state["access"].authorize(scope, self.scope)  # 401, 403, 421
        await super().handle(scope, receive, send)  # 405


class EndpointRoute(GuardedRoute):
    """A route whose endpoint, a plain `def`, runs on a worker thread."""

    runtime: Runtime

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's
        if inspect.iscoroutinefunction(endpoint):
            raise TypeError(f"{endpoint.__name__} runs on a thread: write it with a plain def")
        super().__init__(path, endpoint, **kwargs)
        if self.dependant.response_param_name or self.dependant.background_tasks_param_name:
            raise TypeError(f"{endpoint.__name__} must return a Response: its headers and background tasks go there")
        if self.body_field and self.body_field not in self.dependant.body_params:
            raise TypeError(f"{endpoint.__name__} must take the whole body as one parameter of its own")
        self.app = Endpoint(self, self.runtime)
        if self.app.arguments.have_dependencies:
            self.app = AsyncExitStackMiddleware(self.app)  # closes what a dependency opened


class EventLoopRoute(GuardedRoute):
    """A route whose endpoint, an `async def` that waits for nothing slow, runs on the event loop."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's
        super().__init__(path, endpoint, **kwargs)
        self.app = AsyncExitStackMiddleware(self.app)


def endpoint_route(runtime: Runtime) -> type[EndpointRoute]:
    """Return the class of the routes that share `runtime`."""
    return type("EndpointRoute", (EndpointRoute,), {"runtime": runtime})


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 404 to whoever may do anything: nobody else learns which paths there are."""
    if scope["type"] == "http":
        scope["app"].state["access"].authorize(scope, ANY)  # 401, 421
    await scope["router"].not_found(scope, receive, send)  # closes a web socket


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Raise TypeError for a route without a scope: everybody could call it."""
    for route in routes:
        if not isinstance(route, GuardedRoute):
            raise TypeError(
                f"{route} declares no scope: it takes @allow(...), and a route_class of service/web/routing.py"
            )
