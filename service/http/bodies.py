"""Reads a body before anything is taken for its request: a slow client holds no thread and no connection."""

import asyncio
import json
from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic_core import PydanticUndefined
from starlette.requests import Request


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
    RequestValidationError for JSON that no number or stack of Python's can hold.
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
    if json.detect_encoding(body) not in {"utf-8", "utf-8-sig"}:
        raise MalformedJson  # Python would take UTF-16 and UTF-32 too
    try:
        return await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError) as exc:
        raise MalformedJson from exc
    except (ValueError, RecursionError) as exc:  # a number of more than 4300 digits, lists a thousand deep
        error = {"loc": ("body",), "msg": "Input is nested too deep or has too long a number", "type": "json_limits"}
        raise RequestValidationError([error]) from exc
