"""For the operator: /metrics for Prometheus, /pool for people and programs.

Neither asks the database, and neither waits for a thread that runs endpoints.
"""

import ipaddress
import secrets
from base64 import b64decode
from collections.abc import Callable
from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.extras.admin.publisher import MetricsPublisher
from service.extras.admin.single_flight import SingleFlight
from service.settings import Settings
from service.web.endpoint import EventLoopRoute
from service.web.problems import Problem, render
from service.web.responses import json_response

OPERATOR_ONLY = Problem(
    "operator-only", 403, "This is for the operator",
    "Ask from the machine itself, at localhost and through no proxy, or set OPERATOR_KEY and give it as the password.",
)  # fmt: skip

WRONG_KEY = Problem(
    "wrong-operator-key", 401, "The operator's key is missing or wrong",
    "Give OPERATOR_KEY as the password, with any name: curl --user operator:KEY.",
    {"WWW-Authenticate": 'Basic realm="pool", charset="UTF-8"'},
)  # fmt: skip

PAGE = Path(__file__).parent / "page"
FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

# The page may load its own three files and ask its own service. Inline styles and scripts are forbidden.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
}


def routes(settings: Settings, publisher: MetricsPublisher) -> APIRouter:
    """Return the routes of the operator."""
    router = APIRouter(route_class=EventLoopRoute, include_in_schema=False)
    refused = _access(settings)
    rendered_metrics = SingleFlight(publisher.metrics)
    pool_state = SingleFlight(publisher.pool)

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await rendered_metrics.get(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/pool")
    async def pool(request: Request) -> Response:
        if problem := refused(request):
            return render(problem)
        if "text/html" in request.headers.get("accept", ""):
            page = _read("pool.html").replace(b'="/', f'="{settings.root_path}/'.encode())
            return Response(page, 200, HEADERS, "text/html")
        return json_response(await pool_state.get(), headers=HEADERS)

    @router.get("/pool/{name}")
    async def file(name: str, request: Request) -> Response:
        if problem := refused(request):
            return render(problem)
        if name not in FILES:
            raise HTTPException(404)
        return Response(_read(name), 200, HEADERS, FILES[name])

    return router


def _access(settings: Settings) -> Callable[[Request], Problem | None]:
    """Return the check of a request: whoever has the key may see the pool; without a key, this machine may."""
    if settings.operator_key is None:
        return lambda request: None if _from_here(request) else OPERATOR_ONLY
    key = settings.operator_key.get_secret_value().encode()
    return lambda request: None if secrets.compare_digest(_password(request), key) else WRONG_KEY


def _from_here(request: Request) -> bool:
    """Return whether a program or a browser on this machine asks.

    The host it asks for must be a name of this machine: a web page could let a name of its own resolve to it. A proxy
    on this machine asks for somebody else.
    """
    client = request.client.host if request.client else ""
    try:
        local = ipaddress.ip_address(client).is_loopback
    except ValueError:
        local = False
    named = (request.url.hostname or "") in {"localhost", "127.0.0.1", "::1"}
    return local and named and not {"forwarded", "x-forwarded-for", "x-real-ip", "via"} & set(request.headers)


def _password(request: Request) -> bytes:
    scheme, _, given = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "basic":
        return b""
    try:
        return b64decode(given, validate=True).partition(b":")[2]
    except ValueError:
        return b""


@cache
def _read(name: str) -> bytes:
    return (PAGE / name).read_bytes()
