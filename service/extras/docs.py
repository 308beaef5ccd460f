"""/docs, /redoc and /openapi.json. They need no internet access: the scripts come from a package."""

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_redoc_html, get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.web.endpoint import EventLoopRoute
from service.web.responses import json_response

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


def routes(app: FastAPI, root_path: str) -> APIRouter:
    """Return the routes of the documentation. The OpenAPI document is made from `app.routes` at the first request."""
    router = APIRouter(route_class=EventLoopRoute, include_in_schema=False)

    @cache
    def openapi() -> Response:
        schema = get_openapi(
            title=app.title,
            version=app.version,
            description=app.description,
            routes=app.routes,
            servers=[{"url": root_path}] if root_path else None,
        )
        schema["components"]["schemas"]["Problem"] = PROBLEM_SCHEMA
        _widen_integers(schema)
        return json_response(schema)

    @router.get("/openapi.json")
    async def openapi_json() -> Response:
        return openapi()

    @router.get("/docs")
    async def swagger_ui() -> Response:
        return get_swagger_ui_html(
            openapi_url=f"{root_path}/openapi.json",
            title=app.title,
            swagger_js_url=f"{root_path}/docs/assets/swagger-ui-bundle.js",
            swagger_css_url=f"{root_path}/docs/assets/swagger-ui.css",
            swagger_favicon_url=f"{root_path}/docs/assets/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},  # or it sends the document to validator.swagger.io
        )

    @router.get("/redoc")
    async def redoc() -> Response:
        return get_redoc_html(
            openapi_url=f"{root_path}/openapi.json",
            title=app.title,
            redoc_js_url=f"{root_path}/docs/assets/redoc.standalone.js",
            redoc_favicon_url=f"{root_path}/docs/assets/favicon.png",
            with_google_fonts=False,
        )

    @router.get("/docs/assets/{name}")
    async def asset(name: str) -> Response:
        if name not in ASSETS:
            raise HTTPException(404)
        return Response(_read(name), media_type=ASSETS[name], headers={"Cache-Control": "max-age=86400"})

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


@cache
def _read(name: str) -> bytes:
    package = importlib.util.find_spec("fastapi_offline")
    assert package is not None  # noqa: S101 - in requirements.txt
    assert package.submodule_search_locations is not None  # noqa: S101
    content = Path(package.submodule_search_locations[0], "static", name).read_bytes()
    return content.replace(REDOC_LOGO, b"data:,")
