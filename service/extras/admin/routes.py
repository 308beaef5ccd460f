"""For whoever runs the service: /metrics for Prometheus, /pool for eyes and for programs.

Neither asks the database, and neither waits for a thread of the users' requests.
"""

import ipaddress
import secrets
from base64 import b64decode
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.extras.admin import publisher
from service.extras.admin.single_flight import Shared
from service.settings import Settings
from service.telemetry import exposition
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

# Nothing but the page's own three files and its own questions; no style or script in the page itself.
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


def routes(settings: Settings) -> APIRouter:
    """Return the routes of the operator."""
    router = APIRouter(include_in_schema=False)
    refused = _access(settings)
    exposed = Shared(exposition.render)
    view = Shared(partial(publisher.view, settings.workers))

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(await exposed.get(), media_type=exposition.CONTENT_TYPE)

    @router.get("/pool")
    async def pool(request: Request) -> Response:
        if problem := refused(request):
            return render(problem)
        if "text/html" in request.headers.get("accept", ""):
            return Response(_read("pool.html"), 200, HEADERS, "text/html")
        return json_response(await view.get(), headers=HEADERS)

    @router.get("/pool/{name}")
    async def file(name: str, request: Request) -> Response:
        if problem := refused(request):
            return render(problem)
        if name not in FILES:
            raise HTTPException(404)
        return Response(_read(name), 200, HEADERS, FILES[name])

    return router


def _access(settings: Settings) -> Callable[[Request], Problem | None]:
    """Return what tells why a request may not see the pool: with a key, who has it may; without, this machine may."""
    if settings.operator_key is None:
        return lambda request: None if _from_here(request) else OPERATOR_ONLY
    key = settings.operator_key.get_secret_value().encode()
    return lambda request: None if secrets.compare_digest(_password(request), key) else WRONG_KEY


def _from_here(request: Request) -> bool:
    """Tell whether a program or a browser on this machine asks.

    The name it was asked by must be this machine's own: a web page could point a name of its own here. A proxy on
    this machine asks for somebody else.
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
