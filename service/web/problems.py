"""One table: exception -> status, code, words. Every error of every path is answered from it (RFC 9457).

An exception is answered by the row of its own class, or else of its nearest base class. A resource adds
the rows of its own exceptions: see `users/errors.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.routing import Match, Route

from service.database.errors import (
    ConnectionBroke,
    ConnectionCut,
    DatabaseUnavailable,
    DeadlineExceeded,
    TooManyConnections,
)
from service.telemetry import metrics
from service.telemetry.record import RECORD
from service.web.admission import Overloaded
from service.web.bodies import BodyTooLarge, BodyTooSlow, MalformedJson, UnsupportedMediaType

MEDIA_TYPE = "application/problem+json"
ERRORS_SHOWN = 20  # of a 422: a body of ten thousand unknown fields gets no answer ten times its size
NAME_SHOWN = 100  # characters of a field's name, likewise

UNDECIDED = "A change may or may not have been made: read before you send it again"

RETRY_AFTER = 1  # seconds: an outage or a full queue may be over by then, and 1 is the least
AGAIN = {"Retry-After": str(RETRY_AFTER)}


@dataclass(frozen=True)
class Problem:
    """A row of the table: `code` is for programs and never changes, `detail` says what to do next."""

    code: str
    status: int
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Be counted."""
        metrics.PROBLEMS.labels(self.code)

    def members(self) -> dict[str, Any]:
        """Return what every answer with this problem says."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


# A class of exceptions, or the status of an HTTPException, which the framework raises for a path or a method.
Table = Mapping[type[Exception] | int, Problem]

CORS_REFUSED = Problem(
    "cors-refused", 400, "This origin may not send this",
    "Add the page's origin to CORS_ORIGINS, and keep to the methods and headers that the API takes.",
)  # fmt: skip

MALFORMED_REQUEST = Problem(
    "malformed-request", 400, "The request is not HTTP",
    "Its first line or a header cannot be parsed, or the method is none that HTTP knows.", {"Connection": "close"},
)  # fmt: skip

HEAD_TOO_LARGE = Problem(
    "head-too-large", 431, "The headers are too large",
    "Send fewer or shorter headers: all of them in 64 KiB.", {"Connection": "close"},
)  # fmt: skip

STOPPING = Problem(
    "stopping", 503, "The service is being stopped",
    f"{UNDECIDED}, after the seconds in Retry-After.", {**AGAIN, "Connection": "close"},
)  # fmt: skip

PROBLEMS: Table = {
    RequestValidationError: Problem(
        "invalid-request", 422, "The request does not fit",
        "Correct what `errors` names and send it again.",
    ),
    MalformedJson: Problem(
        "malformed-json", 400, "The body is not JSON",
        'Send one JSON object in UTF-8, such as {"fname": "Ada"}.',
    ),
    UnsupportedMediaType: Problem(
        "unsupported-media-type", 415, "The body is not declared as JSON",
        "Send the header Content-Type: application/json. With curl: use --json in place of -d.",
    ),
    BodyTooLarge: Problem(
        "body-too-large", 413, "The body is too large",
        "Send a smaller body: no request here needs as much as the limit.",
    ),
    BodyTooSlow: Problem(
        "body-too-slow", 408, "The body did not come in time",
        "Nothing was done. Send the request again, all of it within REQUEST_DEADLINE.", {"Connection": "close"},
    ),
    404: Problem(
        "not-found", 404, "There is nothing at this path",
        "See /docs for the paths that there are.",
    ),
    405: Problem(
        "method-not-allowed", 405, "This path does not take this method",
        "Use one of the methods that the Allow header lists.",
    ),
    Overloaded: Problem(
        "overloaded", 503, "Too many requests are waiting",
        "Nothing was done. Try again after the seconds in Retry-After.", AGAIN,
    ),
    DatabaseUnavailable: Problem(
        "database-unavailable", 503, "The database cannot serve this now",
        "Nothing was done: the database cannot be reached, or could not carry it out."
        " Try again after the seconds in Retry-After.", AGAIN,
    ),
    TooManyConnections: Problem(
        "database-unavailable", 503, "The database has no connection left",
        "Nothing was done: the database is up and has reached its limit of connections (max_connections, or the"
        " role's own). Try again after the seconds in Retry-After.", AGAIN,
    ),
    ConnectionBroke: Problem(
        "database-unavailable", 503, "The connection to the database broke",
        f"{UNDECIDED}, after the seconds in Retry-After.", AGAIN,
    ),
    DeadlineExceeded: Problem(
        "deadline-exceeded", 504, "The request took too long",
        "Nothing was done: it was stopped at its limit. Try again.",
    ),
    ConnectionCut: Problem(
        "deadline-exceeded", 504, "The database did not answer in time",
        f"{UNDECIDED}.",
    ),
    Exception: Problem(
        "internal-error", 500, "Something went wrong here",
        "This is a bug. Report it with the X-Request-ID of this answer.",
    ),
}  # fmt: skip


def install(app: FastAPI, table: Table) -> None:
    """Have `app` answer every exception in `table` but Exception: a bug is for the outermost middleware to log."""

    async def answer(request: Request, exc: Exception) -> Response:
        if isinstance(exc, RequestValidationError):
            return render(find(table, exc), errors=[_error(error) for error in exc.errors()[:ERRORS_SHOWN]])
        if isinstance(exc, HTTPException) and exc.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            return render(find(table, exc), headers={"Allow": ", ".join(_methods(app, request))})
        return render(find(table, exc))

    app.add_exception_handler(HTTPException, answer)
    for kind in table:
        if kind is not Exception:
            app.add_exception_handler(kind, answer)


def find(table: Table, exc: Exception) -> Problem:
    """Return the row that answers `exc`."""
    if isinstance(exc, HTTPException):
        return table[exc.status_code]
    return next(table[kind] for kind in type(exc).__mro__ if kind in table)


def render(problem: Problem, *, headers: Mapping[str, str] | None = None, **members: Any) -> Response:  # noqa: ANN401
    """Return the answer for `problem`, with more headers and members where a kind of error has them."""
    RECORD.get().code = problem.code
    return problem_response(problem, headers=headers, **members)


def problem_response(problem: Problem, *, headers: Mapping[str, str] | None = None, **members: Any) -> Response:  # noqa: ANN401
    """Return the same where there is no request whose record could note the code."""
    return json_response(
        {**problem.members(), **members}, problem.status, {**problem.headers, **(headers or {})}, MEDIA_TYPE
    )


def json_response(
    content: Any,  # noqa: ANN401 - any JSON
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = "application/json",
) -> Response:
    """Return `content` as JSON, with a newline at its end for the terminal it is read in."""
    # Escaped to ASCII: the name of a field can be a lone surrogate, which UTF-8 cannot hold.
    return Response(json.dumps(content, separators=(",", ":")).encode() + b"\n", status, headers, media_type)


def answers(table: Table, *codes: str) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses for the problems called `codes`, an example for each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in (problem for problem in table.values() if problem.code in codes):
        response = responses.setdefault(problem.status, {"description": problem.title, "content": {MEDIA_TYPE: {}}})
        content = response["content"][MEDIA_TYPE]
        content["schema"] = {"$ref": "#/components/schemas/Problem"}
        content.setdefault("examples", {})[problem.title] = {"value": _example(problem)}
    return responses


def _example(problem: Problem) -> dict[str, Any]:
    if problem.code == "invalid-request":
        error = {"loc": ["body", "fname"], "msg": "Field required", "type": "missing"}
        return {**problem.members(), "errors": [error]}
    return problem.members()


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    # Never `input` or `ctx`, which repeat the value, a password perhaps.
    loc = [part if isinstance(part, int) else str(part)[:NAME_SHOWN] for part in error["loc"]]
    return {"loc": loc, "msg": error["msg"], "type": error["type"]}


def _methods(app: FastAPI, request: Request) -> list[str]:
    """Return every method that the request's path takes, whichever routes they are spread over."""
    found = {
        method
        for route in app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
        for method in route.methods or ()
    }
    return sorted(found | {"HEAD"} if "GET" in found else found)
