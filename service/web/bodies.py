"""Read and parse a body before its request acquires anything: a slow client holds no thread and no connection.

Count values and parameters before validation: pydantic makes an error for each unknown name, and 64 KB of names take
15 ms of a core in a body, 35 ms in a query.
"""

import asyncio
import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticUndefined
from starlette.requests import Request

MAX_VALUES = 100  # in a body, at any depth; no body of this service needs six
MAX_PARAMETERS = 32  # in a query; no query of this service needs eight
MAX_QUERY = 8192  # bytes: the longest email that PostgreSQL can index, 2704 bytes, percent-encoded


class UnsupportedMediaType(Exception):
    """The body is not declared as JSON."""


class MalformedJson(Exception):
    """The body is not JSON."""


class BodyTooLarge(Exception):
    """The body is larger than the limit."""


class BodyTooSlow(Exception):
    """The body did not arrive in time."""


async def read_json(request: Request, *, timeout: float) -> Any:  # noqa: ANN401, ASYNC109 - any JSON; the only reader of a body
    """Return the parsed body, or PydanticUndefined when it is empty.

    Raises BodyTooSlow after `timeout` seconds, BodyTooLarge, UnsupportedMediaType, MalformedJson, and
    RequestValidationError for JSON that is nested too deep, or has too long a number or too many values.
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
    except (ValueError, RecursionError) as exc:  # a number of more than 4300 digits, or 1000 nested lists
        raise _invalid("body", "json_limits", "Input is nested too deep or has too long a number") from exc
    check_values(value)
    return value


def check_values(body: Any) -> None:  # noqa: ANN401 - any JSON
    """Raise RequestValidationError when a body has more than MAX_VALUES members and items, at any depth."""
    count, unseen = 0, [body]
    while unseen:
        value = unseen.pop()
        if isinstance(value, dict | list):
            count += len(value)
            if count > MAX_VALUES:
                raise _invalid("body", "too_many_values", f"Input should have at most {MAX_VALUES} values in all")
            unseen.extend(value.values() if isinstance(value, dict) else value)


def check_query(query: bytes) -> None:
    """Raise RequestValidationError when a raw query string is too long or has too many parameters."""
    if len(query) > MAX_QUERY:
        raise _invalid("query", "query_too_long", f"Query should have at most {MAX_QUERY} bytes")
    if query.count(b"&") >= MAX_PARAMETERS:
        raise _invalid("query", "too_many_parameters", f"Query should have at most {MAX_PARAMETERS} parameters")


def _invalid(part: str, kind: str, message: str) -> RequestValidationError:
    return RequestValidationError([{"loc": (part,), "msg": message, "type": kind}])
