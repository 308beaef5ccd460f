"""The path of a request, top to bottom, in one function: read, admit, run, respond.

FastAPI declares the routes, validates, and makes the OpenAPI document. What it does around an endpoint that has no
dependencies cost 26 of 179 µs, and validated after admission, so that a request that cannot be served took a place.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi.dependencies.utils import request_body_to_args, request_params_to_args, solve_dependencies
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute, serialize_response
from pydantic_core import PydanticUndefined
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.database.pool import ConnectionBroke
from service.database.watchdog import DEADLINE
from service.telemetry import metrics
from service.telemetry.record import RECORD
from service.web.admission import Admission, Permit
from service.web.arrival import Arrival
from service.web.bodies import check_query, read_json
from service.web.workers import FULL, Overloaded, Workers

# Releases the permit of the current request to hash; called from its thread.
_RELEASE_HASHING: ContextVar[Callable[[], object]] = ContextVar("_RELEASE_HASHING", default=lambda: None)


def release_hashing_permit() -> None:
    """Let the next sign-up hash: this request has done so, and may wait for the database from here on."""
    _RELEASE_HASHING.get()()


@dataclass(frozen=True)
class Resources:
    """What all endpoints share."""

    workers: Workers
    queue: Admission  # before the threads
    hashing: Admission  # before that, of sign-ups and log-ins: they never keep a thread from a read
    deadline: float  # seconds from the end of a request's body to its response


def endpoint_route(resources: Resources) -> type[APIRoute]:
    """Return the class of the routes whose endpoints run on a thread, each a plain `def`."""

    class EndpointRoute(APIRoute):
        def __init__(self, path: str, endpoint: Callable[..., Any], **kwargs: Any) -> None:  # noqa: ANN401
            if inspect.iscoroutinefunction(endpoint):
                raise TypeError(f"{endpoint.__name__} runs on a thread: write it with a plain def")
            super().__init__(path, endpoint, **kwargs)
            self.app = Endpoint(self, resources)

    return EndpointRoute


class Endpoint:
    """Handles the requests of one route."""

    def __init__(self, route: APIRoute, resources: Resources) -> None:
        """Run the endpoint of `route`, as `resources` admit."""
        self._route = route
        self._workers = resources.workers
        self._queue = resources.queue
        self._hashing = resources.hashing
        self._hashes: Callable[[Any], bool] | None = getattr(route.endpoint, "hashes", None)
        self._deadline = resources.deadline
        d = route.dependant
        self._solves = any(
            (d.dependencies, d.header_params, d.cookie_params, d.request_param_name, d.http_connection_param_name,
             d.response_param_name, d.background_tasks_param_name, d.security_scopes_param_name)
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Raises what problems.py answers."""
        record = RECORD.get()
        record.route = self._route.path_format
        arrival: Arrival = scope["arrival"]
        received_at = arrival.received_at
        if self._queue.full and not arrival.permit:
            metrics.REFUSED.add(self._queue.name, FULL)
            raise Overloaded(FULL)  # 503, before anything is spent on it

        body: Any = PydanticUndefined
        if self._route.body_field is not None:
            # With a request of its own, so that its bytes are not kept while this one waits.
            body = await read_json(Request(scope, receive), timeout=self._deadline)  # 400, 408, 413, 415
            received_at = time.monotonic()
        DEADLINE.set(received_at + self._deadline)
        arguments = await self._arguments(Request(scope, receive), body)  # 422; nothing is held yet

        if self._hashes and self._hashes(body):
            arrival.hashes = True
            until = received_at + self._hashing.wait
            with await _acquire(self._hashing, until, arrival) as permit:  # 503
                record.queued_to_hash = time.monotonic() - received_at
                later = asyncio.get_running_loop().call_soon_threadsafe
                _RELEASE_HASHING.set(partial(later, permit.release))
                response = await self._run(scope, arguments, time.monotonic())
        else:
            response = await self._run(scope, arguments, received_at)
        await response(scope, receive, send)  # a client that reads slowly holds nothing

    async def _run(self, scope: Scope, arguments: Mapping[str, Any], queued_at: float) -> Response:
        """Run the endpoint on a thread; a read whose connection breaks, once more. Raises Overloaded."""
        record = RECORD.get()
        arrival: Arrival = scope["arrival"]
        deadline = DEADLINE.get()
        until = min(queued_at + self._queue.wait, deadline)
        with arrival.permit or await _acquire(self._queue, until, arrival):  # 503; nothing but a place in the queue
            record.queued = time.monotonic() - queued_at
            arrival.admitted = True
            run = partial(self._workers.run, self._route.endpoint, arguments)
            try:
                result = await run(start_by=until)
            except ConnectionBroke:
                if scope["method"] != "GET":
                    raise  # a write may have been carried out
                metrics.RETRIES.add()
                result = await run(start_by=deadline)
        return result if isinstance(result, Response) else await self._response(result)

    async def _arguments(self, request: Request, body: Any) -> Mapping[str, Any]:  # noqa: ANN401 - any JSON
        """Return the endpoint's arguments, validated. Raises RequestValidationError."""
        check_query(request.scope["query_string"])
        dependant = self._route.dependant
        if self._solves:
            stack = request.scope["fastapi_middleware_astack"]  # ends what a dependency yields, after the response
            request.scope["fastapi_inner_astack"] = request.scope["fastapi_function_astack"] = stack
            solved = await solve_dependencies(
                request=request, dependant=dependant, body=body, async_exit_stack=stack, embed_body_fields=False,
                dependency_overrides_provider=self._route.dependency_overrides_provider,
            )  # fmt: skip
            arguments, errors = solved.values, solved.errors
        else:
            arguments, errors = request_params_to_args(dependant.path_params, request.path_params)
            if dependant.query_params:
                values, more = request_params_to_args(dependant.query_params, request.query_params)
                arguments, errors = {**arguments, **values}, errors + more
            if dependant.body_params:
                values, more = await request_body_to_args(dependant.body_params, body, embed_body_fields=False)
                arguments, errors = {**arguments, **values}, errors + more
        if errors:
            raise RequestValidationError(errors)
        return arguments

    async def _response(self, result: Any) -> Response:  # noqa: ANN401 - what an endpoint returns
        """Return what FastAPI makes of a value: validated by the route's response model, as JSON."""
        content = await serialize_response(field=self._route.response_field, response_content=result)
        return JSONResponse(content, self._route.status_code or 200)


async def _acquire(admission: Admission, until: float, arrival: Arrival) -> Permit:
    """Return a permit. Raises Overloaded, and ClientDisconnect when the client has left while its request waited."""
    permit = await admission.acquire(until, yields=arrival.yields)
    if arrival.disconnected():
        permit.release()
        metrics.ABANDONED.add(admission.name)
        raise ClientDisconnect
    return permit
