"""Reads a body before anything is taken for its request: a slow client holds no thread and no connection.

What a client sends is counted before it is validated: pydantic makes an error of every unknown name, and 64 KB of
them take 15 ms of a core in a body, 35 in a query.
"""

import asyncio
import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticUndefined
from starlette.requests import Request

MAX_VALUES = 100  # in a body, at any depth: no body here has six
MAX_PARAMETERS = 32  # in a query: none here has four
MAX_QUERY = 8192  # bytes: the longest email that PostgreSQL can index, 2704 bytes, percent-encoded


class UnsupportedMediaType(Exception):
    """There is a body, and it is not declared as JSON."""


class MalformedJson(Exception):
    """The body is not JSON."""


class BodyTooLarge(Exception):
    """The body is over the limit."""


class BodyTooSlow(Exception):
    """The body did not come in time."""


async def read_json(request: Request, *, timeout: float) -> Any:  # noqa: ANN401, ASYNC109 - any JSON; it is read nowhere else
    """Read and parse the body; PydanticUndefined when there is none.

    Raises BodyTooSlow after `timeout` seconds, UnsupportedMediaType, MalformedJson, BodyTooLarge, and
    RequestValidationError for JSON that no number or stack of Python's can hold, or with too many values.
    """
    try:
        async with asyncio.timeout(timeout):
            body = await request.body()
    except TimeoutError as exc:
        raise BodyTooSlow from exc
    if not body:
        return PydanticUndefined
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise UnsupportedMediaType
    try:
        value = json.loads(body.decode("utf-8-sig"))  # Python would guess UTF-16 and UTF-32 too
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise MalformedJson from exc
    except (ValueError, RecursionError) as exc:  # a number of more than 4300 digits, lists a thousand deep
        raise _invalid("body", "json_limits", "Input is nested too deep or has too long a number") from exc
    check_values(value)
    return value


def check_values(body: Any) -> None:  # noqa: ANN401 - any JSON
    """Raise RequestValidationError when a body has more than MAX_VALUES members and items, and so when it is deep."""
    count, unseen = 0, [body]
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict | list):
            count += len(value)
            if count > MAX_VALUES:
                raise _invalid("body", "too_many_values", f"Input should have at most {MAX_VALUES} values in all")
            unseen.extend(value.values() if isinstance(value, dict) else value)


def check_query(query: bytes) -> None:
    """Raise RequestValidationError when a raw query string is too long, or has too many parameters, to be parsed."""
    if len(query) > MAX_QUERY:
        raise _invalid("query", "query_too_long", f"Query should have at most {MAX_QUERY} bytes")
    if query.count(b"&") >= MAX_PARAMETERS:
        raise _invalid("query", "too_many_parameters", f"Query should have at most {MAX_PARAMETERS} parameters")


def _invalid(part: str, kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": (part,), "msg": message, "type": kind}])
