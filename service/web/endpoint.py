"""The path of a request, top to bottom, in one function: read, admit, run, respond.

FastAPI declares the routes, validates and makes the OpenAPI document. Its own handler would validate after admission,
where a request that cannot be served takes a place.
"""

import asyncio
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

from fastapi.routing import APIRoute, serialize_response
from pydantic_core import PydanticUndefined
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.database.errors import ConnectionBroke, NotSent
from service.database.watchdog import DEADLINE
from service.telemetry import metrics
from service.telemetry.record import RECORD
from service.web.admission import FULL, Admission, Permit
from service.web.arguments import Arguments
from service.web.arrival import Arrival
from service.web.bodies import read_json
from service.web.responses import json_response
from service.web.stalled_commits import StalledCommits
from service.web.workers import Workers

_REQUEST: ContextVar[tuple[Scope, Any]] = ContextVar("_REQUEST")  # and its parsed body
_RELEASE_HASHING: ContextVar[Callable[[], object]] = ContextVar("_RELEASE_HASHING", default=lambda: None)


def name_subject(subject_id: int) -> None:
    """Have the log say what the current request is about, when its path does not. Call it from the endpoint."""
    RECORD.get().subject = str(subject_id)


def request_content() -> list[Any]:
    """Return what the current request asks for: its method, path, query and parsed body. Call it from the endpoint."""
    scope, body = _REQUEST.get()
    query = scope["query_string"].decode("latin-1")
    return [scope["method"], scope["path"], query, None if body is PydanticUndefined else body]


def release_hashing_permit() -> None:
    """Let the next request hash: the current one has done so. Call it from the endpoint's thread."""
    _RELEASE_HASHING.get()()


@dataclass(frozen=True)
class Runtime:
    """What all endpoints run on."""

    workers: Workers
    queue: Admission  # before the threads
    hashing: Admission  # before that, for requests that hash a password: they never keep a thread from a read
    stalled_commits: StalledCommits
    deadline: float  # seconds from the end of a request's body to its response


class Endpoint:
    """Handles the requests of one route."""

    def __init__(self, route: APIRoute, runtime: Runtime) -> None:
        self._route = route
        self.arguments = Arguments(route)
        self._hashes: Callable[[Any], bool] = getattr(route.endpoint, "hashes", lambda _: False)
        self._runtime = runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request. Raises what problems.py answers with the statuses at the steps below."""
        arrival: Arrival = scope["arrival"]
        record = RECORD.get()
        is_write = scope["method"] != "GET"
        if self._runtime.queue.full and not arrival.permit:
            raise self._runtime.queue.refuse(FULL)  # 503, before anything is spent on it
        if is_write:
            self._runtime.stalled_commits.check()  # 503

        body: Any = PydanticUndefined
        if self._route.body_field is not None:
            # With a Request of its own, so that the bytes are not kept while this one waits.
            body = await read_json(Request(scope, receive), timeout=self._runtime.deadline)  # 400, 408, 413, 415
            record.queued_at = time.monotonic()
        DEADLINE.set(record.queued_at + self._runtime.deadline)
        arguments = await self.arguments.read(Request(scope, receive), body)  # 422
        if is_write:
            _REQUEST.set((scope, body))
            record.subject = ",".join(quote(str(arguments.get(name, ""))) for name in scope["path_params"])

        with (
            await self._permit_to_hash(arrival, body),  # 503
            # 503; until here, nothing is held
            arrival.permit or await _acquire(self._runtime.queue, arrival, is_write=is_write),
        ):
            arrival.admitted = True
            result = await self._run(arguments, is_write=is_write)  # on a thread, with at most one connection
        response = result if isinstance(result, Response) else await self._response(result)
        await response(scope, receive, send)  # a client that reads slowly holds nothing

    async def _permit_to_hash(self, arrival: Arrival, body: Any) -> Permit:  # noqa: ANN401 - any JSON
        """Return a permit to hash a password, or an empty one when this request hashes none."""
        if not self._hashes(body):
            return Permit(None)
        arrival.hashes = True
        permit = await _acquire(self._runtime.hashing, arrival)
        _RELEASE_HASHING.set(partial(asyncio.get_running_loop().call_soon_threadsafe, permit.release))
        record, now = RECORD.get(), time.monotonic()
        record.queued_to_hash, record.queued_at = now - record.queued_at, now
        return permit

    async def _run(self, arguments: Mapping[str, Any], *, is_write: bool) -> Any:  # noqa: ANN401 - the endpoint's own
        """Run the endpoint on a thread; a read that its connection does not carry out, once more."""
        if is_write:
            self._runtime.stalled_commits.check()  # 503: it may have waited since the first check
        run = partial(self._runtime.workers.run, self._route.endpoint, arguments, is_write=is_write)
        try:
            return await run(start_by=_start_by(self._runtime.queue))
        except (ConnectionBroke, NotSent):
            if is_write:
                raise  # the service never retries a write
            metrics.READS_RETRIED.inc()
            return await run(start_by=DEADLINE.get())

    async def _response(self, result: Any) -> Response:  # noqa: ANN401
        """Return what FastAPI makes of a value: validated by the route's response model, as JSON."""
        content = await serialize_response(field=self._route.response_field, response_content=result)
        return json_response(content, self._route.status_code or 200)


async def _acquire(admission: Admission, arrival: Arrival, *, is_write: bool = False) -> Permit:
    """Return a permit. Raises Overloaded, and ClientDisconnect when the client left while its request waited."""
    permit = await admission.acquire(_start_by(admission), low_priority=arrival.low_priority, is_write=is_write)
    if arrival.disconnected():
        permit.release()
        metrics.REQUESTS_ABANDONED.labels(admission.name).inc()
        raise ClientDisconnect
    return permit


def _start_by(admission: Admission) -> float:
    """Return the monotonic time until which the current request waits in the queue of `admission`."""
    return min(RECORD.get().queued_at + admission.wait, DEADLINE.get())
