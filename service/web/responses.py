"""JSON responses. Each ends with a newline, for the terminal it is read in."""

import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

JSON = "application/json"
NO_STORE = {"Cache-Control": "no-store"}
NOSNIFF = {"X-Content-Type-Options": "nosniff"}

# Headers of a response, for OpenAPI.
LINK = {"Link": {"description": "The next page, while there is one.", "schema": {"type": "string"}}}
ETAG = {"ETag": {"description": "For If-Match and If-None-Match.", "schema": {"type": "string"}}}
REPLAYED = {"Idempotency-Replayed": {"description": "true, if so.", "schema": {"type": "string"}}}
NOT_MODIFIED: dict[str, Any] = {"description": "If-None-Match has the ETag.", "headers": ETAG}
TOTAL_COUNT = {
    "X-Total-Count": {"description": "With count=exact: how many match, on all pages.", "schema": {"type": "integer"}},
    "Preference-Applied": {"description": "The preference that was met.", "schema": {"type": "string"}},
}
LOCATION = {"Location": {"description": "The path of what was created.", "schema": {"type": "string"}}}


def json_response(
    content: Any,  # noqa: ANN401 - any JSON
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    media_type: str = JSON,
) -> Response:
    """Return a response with `content` as JSON."""
    # Escaped to ASCII: the name of a field can be a lone surrogate, which UTF-8 cannot encode.
    return Response(json.dumps(content, separators=(",", ":")).encode() + b"\n", status, headers, media_type)


def json_text_response(text: str, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with `text`, which is JSON already: PostgreSQL made it. No cache keeps it."""
    return Response(text.encode() + b"\n", status, {**NO_STORE, **(headers or {})}, JSON)


def page_headers(*sources: str) -> dict[str, str]:
    """Return the headers of a page that loads nothing but `sources`, as "script-src 'self'", and stands in no frame."""
    policy = ("default-src 'none'", *sources, "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'")
    return {"Content-Security-Policy": "; ".join(policy), "Referrer-Policy": "no-referrer", **NOSNIFF}


class FailureWithHeaders(Exception):
    """A failure whose answer has `headers` of its own, besides those of its row in problems.py."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        super().__init__(str(headers))
        self.headers = headers
