"""The path of a request, top to bottom, in one function: read, admit, run, respond.

FastAPI declares the routes, validates and makes the OpenAPI document. Its own handler would validate after admission,
where a request that cannot be served takes a place.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from fastapi.middleware.asyncexitstack import AsyncExitStackMiddleware
from fastapi.routing import APIRoute, serialize_response
from pydantic_core import PydanticUndefined
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import Receive, Scope, Send

from service.database.errors import ConnectionBroke
from service.database.watchdog import DEADLINE
from service.telemetry import metrics
from service.telemetry.record import RECORD
from service.web.access import ANY, declared_scope
from service.web.admission import FULL, Admission, Permit
from service.web.arguments import Arguments
from service.web.arrival import Arrival
from service.web.bodies import read_json
from service.web.responses import json_response
from service.web.workers import Workers

_RELEASE_HASHING: ContextVar[Callable[[], object]] = ContextVar("_RELEASE_HASHING", default=lambda: None)


def name_subject(subject_id: int) -> None:
    """Have the log say what the current request is about, when its path does not. Call it from the endpoint."""
    RECORD.get().subject = str(subject_id)


def release_hashing_permit() -> None:
    """Let the next request hash: the current one has done so. Call it from the endpoint's thread."""
    _RELEASE_HASHING.get()()


@dataclass(frozen=True)
class Resources:
    """What all endpoints share."""

    workers: Workers
    queue: Admission  # before the threads
    hashing: Admission  # before that, for requests that hash a password: they never keep a thread from a read
    deadline: float  # seconds from the end of a request's body to its response


class GuardedRoute(APIRoute):
    """A route whose endpoint has declared with `allow` who may call it."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's
        """Raise TypeError when it has not."""
        self.scope = declared_scope(endpoint)
        super().__init__(path, endpoint, **kwargs)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        scope["app"].state.access.authorize(scope, self.scope)  # 401, 403, 421
        await super().handle(scope, receive, send)  # 405


class EndpointRoute(GuardedRoute):
    """A route whose endpoint, a plain `def`, runs on a worker thread."""

    resources: Resources

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's
        if inspect.iscoroutinefunction(endpoint):
            raise TypeError(f"{endpoint.__name__} runs on a thread: write it with a plain def")
        super().__init__(path, endpoint, **kwargs)
        if self.dependant.response_param_name or self.dependant.background_tasks_param_name:
            raise TypeError(f"{endpoint.__name__} must return a Response: its headers and background tasks go there")
        if self.body_field and self.body_field not in self.dependant.body_params:
            raise TypeError(f"{endpoint.__name__} must take the whole body as one parameter of its own")
        self.app = Endpoint(self, self.resources)
        if self.app.arguments.have_dependencies:
            self.app = AsyncExitStackMiddleware(self.app)  # closes what a dependency opened


class EventLoopRoute(GuardedRoute):
    """A route whose endpoint, an `async def` that waits for nothing slow, runs on the event loop."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401 - FastAPI's
        super().__init__(path, endpoint, **kwargs)
        self.app = AsyncExitStackMiddleware(self.app)


def endpoint_route(resources: Resources) -> type[EndpointRoute]:
    """Return the class of the routes that share `resources`."""
    return type("EndpointRoute", (EndpointRoute,), {"resources": resources})


async def not_found(scope: Scope, _receive: Receive, _send: Send) -> None:
    """Answer 404 to whoever may do anything: nobody else learns which paths there are."""
    scope["app"].state.access.authorize(scope, ANY)  # 401, 421
    raise HTTPException(HTTPStatus.NOT_FOUND)


def check_routes(routes: Iterable[BaseRoute]) -> None:
    """Raise TypeError for a route that is open to everybody, as no `allow` has declared who may call it."""
    for route in routes:
        if not isinstance(route, GuardedRoute):
            raise TypeError(
                f"{route} declares no scope: it takes @allow(...), and a route_class of service/web/endpoint.py"
            )


class Endpoint:
    """Handles the requests of one route."""

    def __init__(self, route: APIRoute, resources: Resources) -> None:
        self._route = route
        self.arguments = Arguments(route)
        self._hashes: Callable[[Any], bool] = getattr(route.endpoint, "hashes", lambda _: False)
        self._resources = resources

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Raises what problems.py answers with the statuses at the steps below."""
        arrival: Arrival = scope["arrival"]
        record = RECORD.get()
        record.route = self._route.path_format
        if self._resources.queue.full and not arrival.permit:
            raise self._resources.queue.refuse(FULL)  # 503, before anything is spent on it

        body: Any = PydanticUndefined
        if self._route.body_field is not None:
            # With a Request of its own, so that the bytes are not kept while this one waits.
            body = await read_json(Request(scope, receive), timeout=self._resources.deadline)  # 400, 408, 413, 415
            record.queued_at = time.monotonic()
        DEADLINE.set(record.queued_at + self._resources.deadline)
        arguments = await self.arguments.read(Request(scope, receive), body)  # 422
        if scope["method"] != "GET":
            record.subject = ",".join(str(arguments.get(name, "")) for name in scope["path_params"])

        with (
            await self._permit_to_hash(arrival, body),  # 503
            arrival.permit or await _acquire(self._resources.queue, arrival),  # 503; until here, nothing is held
        ):
            arrival.admitted = True
            result = await self._run(scope["method"], arguments)  # on a thread, with at most one connection
        response = result if isinstance(result, Response) else await self._response(result)
        await response(scope, receive, send)  # a client that reads slowly holds nothing

    async def _permit_to_hash(self, arrival: Arrival, body: Any) -> Permit:  # noqa: ANN401 - any JSON
        """Return a permit to hash a password, or an empty one when this request hashes none."""
        if not self._hashes(body):
            return Permit(None)
        arrival.hashes = True
        permit = await _acquire(self._resources.hashing, arrival)
        _RELEASE_HASHING.set(partial(asyncio.get_running_loop().call_soon_threadsafe, permit.release))
        record, now = RECORD.get(), time.monotonic()
        record.queued_to_hash, record.queued_at = now - record.queued_at, now
        return permit

    async def _run(self, method: str, arguments: Mapping[str, Any]) -> Any:  # noqa: ANN401 - the endpoint's own
        """Run the endpoint on a thread; a read whose connection breaks, once more."""
        run = partial(self._resources.workers.run, self._route.endpoint, arguments)
        try:
            return await run(start_by=_start_by(self._resources.queue))
        except ConnectionBroke:
            if method != "GET":
                raise  # a write may have been carried out
            metrics.READS_RETRIED.inc()
            return await run(start_by=DEADLINE.get())

    async def _response(self, result: Any) -> Response:  # noqa: ANN401
        """Return what FastAPI makes of a value: validated by the route's response model, as JSON."""
        content = await serialize_response(field=self._route.response_field, response_content=result)
        return json_response(content, self._route.status_code or 200)


async def _acquire(admission: Admission, arrival: Arrival) -> Permit:
    """Return a permit. Raises Overloaded, and ClientDisconnect when the client left while its request waited."""
    permit = await admission.acquire(_start_by(admission), low_priority=arrival.low_priority)
    if arrival.disconnected():
        permit.release()
        metrics.REQUESTS_ABANDONED.labels(admission.name).inc()
        raise ClientDisconnect
    return permit


def _start_by(admission: Admission) -> float:
    """Return the monotonic time until which the current request waits in the queue of `admission`."""
    return min(RECORD.get().queued_at + admission.wait, DEADLINE.get())
