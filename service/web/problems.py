"""The table that maps each exception to a problem (RFC 9457). Every error response is made from it.

The row of an exception is that of its class, or of its nearest base class. A resource adds the rows of its own
exceptions, as users/errors.py does.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.client import responses as PHRASES  # noqa: N812 - a constant
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from psycopg import IntegrityError, errors
from starlette.exceptions import HTTPException

from service.database.errors import (
    CommitsStalled,
    ConnectionBroke,
    ConnectionCut,
    DatabaseUnavailable,
    DeadlineExceeded,
    TooManyConnections,
)
from service.telemetry import metrics
from service.telemetry.record import RECORD
from service.web.access import Forbidden, Unauthenticated, UnknownHost
from service.web.admission import Overloaded
from service.web.bodies import BodyTooLarge, BodyTooSlow, MalformedJson, UnsupportedMediaType
from service.web.preconditions import PreconditionFailed
from service.web.responses import json_response

MEDIA_TYPE = "application/problem+json"
MAX_ERRORS = 20  # in a 422, so that a body of 10,000 unknown fields gets no response ten times its size
MAX_NAME = 100  # characters of a field's name, for the same reason

OUTCOME_UNKNOWN = "A change may or may not have been made: send it again with its Idempotency-Key, or read first"

RETRY_AFTER = 1  # seconds, the least that the header can say
RETRY_LATER = {"Retry-After": str(RETRY_AFTER)}
CLOSE = {"Connection": "close"}
ETAG = {"ETag": '"12"'}  # an example: PreconditionFailed has the current one


class IdempotencyKeyReused(RequestValidationError):
    """The Idempotency-Key was sent before with another request."""

    def __init__(self) -> None:
        message = "Key should be a new one: this one was sent with another method, path or body"
        super().__init__([{"loc": ("header", "idempotency-key"), "msg": message, "type": "idempotency_key_reused"}])


@dataclass(frozen=True)
class Problem:
    """A kind of error. `code` is for programs and never changes; `detail` says what to do next."""

    code: str
    status: int
    title: str
    detail: str
    headers: Mapping[str, str] = field(default_factory=dict)
    least_duration: float = 0.0  # seconds from admission to the response, to hide how long the endpoint took

    def __post_init__(self) -> None:
        """Declare the label of this code in the metrics."""
        metrics.PROBLEMS.labels(self.code)

    def members(self) -> dict[str, Any]:
        """Return the members of the problem document."""
        return {
            "type": "about:blank",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "code": self.code,
        }


# The key is a class of exceptions, or the status of an HTTPException that Starlette raises.
ProblemTable = Mapping[type[Exception] | int, Problem]

# Problems without an exception: the code that detects them sends them.

CORS_REFUSED = Problem(
    "cors-refused", 400, "This origin may not send this",
    "Add the page's origin to CORS_ORIGINS, and keep to the methods and headers that the API takes.",
)  # fmt: skip

MALFORMED_REQUEST = Problem(
    "malformed-request", 400, "The request is not HTTP",
    "Its first line or a header cannot be parsed, or the method is none that HTTP knows.", CLOSE,
)  # fmt: skip

HEAD_TOO_LARGE = Problem(
    "head-too-large", 431, "The headers are too large",
    "Send fewer or shorter headers: all of them in 64 KiB.", CLOSE,
)  # fmt: skip

STOPPING = Problem(
    "stopping", 503, "The service is being stopped",
    f"{OUTCOME_UNKNOWN}, after the seconds in Retry-After.", {**RETRY_LATER, **CLOSE},
)  # fmt: skip

# For a constraint or trigger that schema.sql does not have, or a column that somebody made narrower.
RULE_VIOLATED = Problem(
    "rule-violated", 409, "A rule of the database forbids this",
    "Nothing was done. The database has a rule of its own: ask whoever runs it. Its log names the rule.",
)  # fmt: skip

PROBLEMS: ProblemTable = {
    RequestValidationError: Problem(
        "invalid-request", 422, "The request does not fit",
        "Correct what `errors` names and send it again.",
    ),
    IdempotencyKeyReused: Problem(
        "idempotency-key-reused", 422, "The Idempotency-Key belongs to another request",
        "Nothing was done. Send a new key with each new request, and the same key only with the same request.",
    ),
    PreconditionFailed: Problem(
        "precondition-failed", 412, "It was changed in the meantime",
        "Nothing was done: the ETag is no longer what If-Match or If-None-Match asks for. Read it again, apply your"
        " change to what you get, and send it with the new ETag.", ETAG,
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
        "Nothing was done. Send the request again, all of it within REQUEST_DEADLINE.", CLOSE,
    ),
    Unauthenticated: Problem(
        "unauthenticated", 401, "A valid API key is needed",
        "Send the header Authorization: Bearer KEY, or the key as the password: curl --user :KEY.",
        # Basic comes first: browsers read only the first.
        {"WWW-Authenticate": 'Basic realm="users", charset="UTF-8", Bearer realm="users"'},
    ),
    Forbidden: Problem(
        "forbidden", 403, "The API key does not allow this",
        "Use a key of the scope that WWW-Authenticate names.", Forbidden("write").headers,
    ),
    UnknownHost: Problem(
        "unknown-host", 421, "Without API keys only this machine is answered",
        "Ask from the machine itself, at localhost, by HTTP/1.1 and through no proxy. For others, whoever runs the"
        " service sets API_KEYS_FILE or ANONYMOUS_ACCESS; ALLOWED_HOSTS takes more names of the machine.",
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
        "Nothing was done. Try again after the seconds in Retry-After.", RETRY_LATER,
    ),
    DatabaseUnavailable: Problem(
        "database-unavailable", 503, "The database cannot serve this now",
        "Nothing was done: the database cannot be reached, or could not carry it out."
        " Try again after the seconds in Retry-After.", RETRY_LATER,
    ),
    TooManyConnections: Problem(
        "database-unavailable", 503, "The database has no connection left",
        "Nothing was done: the database is up and has reached its limit of connections (max_connections, or the"
        " role's own). Try again after the seconds in Retry-After.", RETRY_LATER,
    ),
    CommitsStalled: Problem(
        "database-unavailable", 503, "The database takes no writes now",
        "Nothing was done: a standby of the database, which must have each write, does not answer."
        " Try again after the seconds in Retry-After.", RETRY_LATER,
    ),
    ConnectionBroke: Problem(
        "database-unavailable", 503, "The connection to the database broke",
        f"{OUTCOME_UNKNOWN}, after the seconds in Retry-After.", RETRY_LATER,
    ),
    DeadlineExceeded: Problem(
        "deadline-exceeded", 504, "The request took too long",
        "Nothing was done: it was stopped at its limit. Try again.",
    ),
    ConnectionCut: Problem(
        "deadline-exceeded", 504, "The database did not answer in time",
        f"{OUTCOME_UNKNOWN}.",
    ),
    Exception: Problem(
        "internal-error", 500, "Something went wrong here",
        "This is a bug. Report it with the X-Request-ID of this answer.",
    ),
    IntegrityError: RULE_VIOLATED,
    errors.RaiseException: RULE_VIOLATED,
    errors.StringDataRightTruncation: RULE_VIOLATED,
}  # fmt: skip

# The problems of every endpoint, and those of every endpoint that reads a body.
ENDPOINT_PROBLEMS = (
    Unauthenticated, Forbidden, RequestValidationError, Overloaded, DatabaseUnavailable, DeadlineExceeded, Exception,
)  # fmt: skip
BODY_PROBLEMS = (MalformedJson, UnsupportedMediaType, BodyTooLarge, BodyTooSlow)


def problem_of(table: ProblemTable, exc: Exception) -> Problem:
    """Return the problem of `exc`: the row of its class or its nearest base class.

    That of an HTTPException is the row of its status, or has the words of whoever raised it.
    """
    if not isinstance(exc, HTTPException):
        return next(table[kind] for kind in type(exc).__mro__ if kind in table)
    phrase = PHRASES.get(exc.status_code, "Error")
    if exc.status_code in table and exc.detail == phrase:
        return table[exc.status_code]
    return Problem(phrase.lower().replace(" ", "-"), exc.status_code, phrase, str(exc.detail), exc.headers or {})


def invalid_fields(exc: RequestValidationError) -> list[dict[str, Any]]:
    """Return what does not fit, without its values: one may be a password."""
    return [_error(error) for error in exc.errors()[:MAX_ERRORS]]


def render(problem: Problem, *, headers: Mapping[str, str] | None = None, **members: Any) -> Response:  # noqa: ANN401
    """Record the code of `problem` for the log and the metrics, and return its response."""
    RECORD.get().code = problem.code
    return problem_response(problem, headers=headers, **members)


def problem_response(problem: Problem, *, headers: Mapping[str, str] | None = None, **members: Any) -> Response:  # noqa: ANN401
    """Return the response of `problem`, with additional headers and members."""
    return json_response(
        {**problem.members(), **members}, problem.status, {**problem.headers, **(headers or {})}, MEDIA_TYPE
    )


def error_responses(
    problems: ProblemTable, *kinds: type[Exception], has_body: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Return the error responses of an endpoint for OpenAPI: those of every endpoint, and those of `kinds`.

    `problems` are the rows that the endpoint's resource adds. Raises KeyError for a kind that has no row.
    """
    table = {**PROBLEMS, **problems}
    kinds += ENDPOINT_PROBLEMS + (BODY_PROBLEMS if has_body else ())
    codes = {table[kind].code for kind in kinds}
    return problem_responses(problem for problem in table.values() if problem.code in codes)


def problem_responses(problems: Iterable[Problem]) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of `problems`, with their headers and an example of each."""
    responses: dict[int | str, dict[str, Any]] = {}
    for problem in problems:
        response = responses.setdefault(problem.status, {"description": problem.title, "content": {MEDIA_TYPE: {}}})
        content = response["content"][MEDIA_TYPE]
        content["schema"] = {"$ref": "#/components/schemas/Problem"}
        content.setdefault("examples", {})[problem.title] = {"value": _example(problem)}
        for name in problem.headers.keys() - CLOSE.keys():
            kind = "integer" if name == "Retry-After" else "string"
            response.setdefault("headers", {})[name] = {"schema": {"type": kind}}
    return responses


def _example(problem: Problem) -> dict[str, Any]:
    if problem.code == "invalid-request":
        error = {"loc": ["body", "fname"], "msg": "Field required", "type": "missing"}
        return {**problem.members(), "errors": [error]}
    return problem.members()


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    # Leave out `input` and `ctx`: they repeat the value.
    loc = [part if isinstance(part, int) else str(part)[:MAX_NAME] for part in error["loc"]]
    return {"loc": loc, "msg": error["msg"], "type": error["type"]}
