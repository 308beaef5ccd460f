"""/docs, /redoc and /openapi.json. They need no internet access: the scripts come from a package."""

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from anyio import to_thread
from fastapi import APIRouter, FastAPI
from fastapi.encoders import jsonable_encoder
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.web.access import OPEN, SCHEMES, allow
from service.web.responses import NOSNIFF, json_response, page_headers
from service.web.routing import EventLoopRoute, GuardedRoute

ASSETS = {
    "swagger-ui-bundle.js": "text/javascript",
    "swagger-ui.css": "text/css",
    "redoc.standalone.js": "text/javascript",
    "favicon.png": "image/png",
}

REDOC_LOGO = b"https://cdn.redoc.ly/redoc/logo-mini.svg"  # ReDoc hides an image that cannot be shown

PROBLEM_SCHEMA = {
    "title": "Problem",
    "description": "Problem details, RFC 9457.",
    "type": "object",
    "required": ["type", "title", "status", "detail", "code"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string", "description": "What to do next."},
        "code": {"type": "string", "description": "For programs; never changes."},
        "failed": {
            "type": "string",
            "description": "Of /readyz: the check that fails: starting, schema, database or draining.",
        },
        "errors": {
            "type": "array",
            "description": "Of a 422: what does not fit. Never repeats a value.",
            "items": {
                "type": "object",
                "required": ["loc", "msg", "type"],
                "properties": {
                    "loc": {"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "integer"}]}},
                    "msg": {"type": "string"},
                    "type": {"type": "string"},
                },
            },
        },
    },
}

READ_AFTER = {
    "name": "Read-After",
    "description": "Of an answer to a write: read what it has written, or something newer.",
    "schema": {"type": "string"},
}
READ_FROM = {"Read-From": {"description": "replica, if so: newer writes may be missing.", "schema": {"type": "string"}}}
POSITION = {"Read-After": {"description": "With READS=replica: for reads that need it.", "schema": {"type": "string"}}}

# A page may load the scripts of this service and ask this service. Both pages set styles of their own, Redoc searches
# in a worker that it makes, and Swagger UI has its pictures in its styles.
SOURCES = ("style-src 'self' 'unsafe-inline'", "connect-src 'self'", "img-src 'self' data:", "worker-src blob:")

INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


def routes(app: FastAPI, root_path: str, *, has_replicas: bool = False) -> APIRouter:
    """Return the routes of the documentation. The OpenAPI document is made at the first request, of all routes."""
    router = APIRouter(route_class=EventLoopRoute, include_in_schema=False)

    @cache
    def openapi() -> Response:
        schema = app.openapi()
        schema["components"]["schemas"]["Problem"] = PROBLEM_SCHEMA
        _widen_integers(schema)
        _declare_keys(schema, app)
        if has_replicas:
            _declare_replicas(schema)
        return json_response(schema)

    @router.get("/openapi.json")
    @allow(OPEN)
    async def openapi_json() -> Response:
        return await to_thread.run_sync(openapi)  # the first call takes 30 ms

    @router.get("/docs")
    @allow(OPEN)
    async def swagger_ui() -> Response:
        page = get_swagger_ui_html(
            openapi_url=f"{root_path}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root_path}/docs/assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root_path}/docs/assets/swagger-ui.css",
            swagger_favicon_url=f"{root_path}/docs/assets/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # or it sends the document to validator.swagger.io
        )
        return _protected(page)

    @router.get("/redoc")
    @allow(OPEN)
    async def redoc() -> Response:
        page = get_redoc_html(
            openapi_url=f"{root_path}/openapi.json",
            title=app.title,
            redoc_js_url=f"{root_path}/docs/assets/redoc.standalone.js",
            redoc_favicon_url=f"{root_path}/docs/assets/favicon.png",
            with_google_fonts=False,
        )
        return _protected(page)

    @router.get("/docs/assets/{name}")
    @allow(OPEN)
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        return Response(_read(name), 200, {"Cache-Control": "max-age=86400", **NOSNIFF}, ASSETS[name])

    return router


def _widen_integers(node: Any) -> None:  # noqa: ANN401 - any JSON
    """Declare every integer as int64: without a format, clients generated for Java, C#, Go or Rust have 32 bits."""
    if isinstance(node, dict):
        if node.get("type") == "integer":
            node.setdefault("format", "int64")
        for child in node.values():
            _widen_integers(child)
    elif isinstance(node, list):
        for child in node:
            _widen_integers(child)


def _declare_keys(schema: dict[str, Any], app: FastAPI) -> None:
    """Declare which operations need an API key, so that the Authorize button of /docs works."""
    for route in app.routes:
        if isinstance(route, GuardedRoute) and (security := app.state.access.security(route.scope)):
            schema["components"]["securitySchemes"] = jsonable_encoder(SCHEMES, by_alias=True, exclude_none=True)
            for operation in schema["paths"].get(route.path_format, {}).values():
                if operation["operationId"] == (route.operation_id or route.unique_id):
                    operation["security"] = security


def _declare_replicas(schema: dict[str, Any]) -> None:
    """Declare the headers of reads from replicas."""
    for method, operation in [each for path in schema["paths"].values() for each in path.items()]:
        if operation.get("tags") != ["service"]:
            if method == "get":
                operation.setdefault("parameters", []).append({"in": "header", **READ_AFTER})
            for response in operation["responses"].values():
                response.setdefault("headers", {}).update(READ_FROM if method == "get" else POSITION)


def _protected(page: Response) -> Response:
    """Allow the scripts that are written in `page`, by their hashes, and no other."""
    hashes = (b64encode(sha256(script).digest()).decode() for script in INLINE_SCRIPT.findall(bytes(page.body)))
    scripts = " ".join(f"'sha256-{each}'" for each in hashes)
    page.headers.update(page_headers(f"script-src 'self' {scripts}", *SOURCES))
    return page


@cache
def _read(name: str) -> bytes:
    return files("fastapi_offline").joinpath("static", name).read_bytes().replace(REDOC_LOGO, b"data:,")
