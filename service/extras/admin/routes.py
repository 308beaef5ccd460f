"""For the operator: /metrics for Prometheus, /pool for people and programs.

They neither ask the database nor wait for a worker thread.
"""

from functools import cache, partial
from pathlib import Path

from fastapi import APIRouter, Request
from prometheus_client import exposition
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.exceptions import HTTPException
from starlette.responses import Response

from service.extras.admin.publisher import MetricsPublisher
from service.extras.admin.single_flight import SingleFlight
from service.web.access import allow
from service.web.responses import NO_STORE, json_response, page_headers
from service.web.routing import EventLoopRoute

PAGE = Path(__file__).parent / "page"
FILES = {"page.css": "text/css", "page.js": "text/javascript", "icon.svg": "image/svg+xml"}

# The page may load its own three files and ask its own service. Inline styles and scripts are forbidden.
SOURCES = ("script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self'")
HEADERS = {**NO_STORE, "Vary": "Accept", **page_headers(*SOURCES)}


def routes(publisher: MetricsPublisher, root_path: str) -> APIRouter:
    """Return the routes of the operator."""
    router = APIRouter(route_class=EventLoopRoute, include_in_schema=False)
    text = SingleFlight(partial(publisher.metrics, exposition.generate_latest))
    open_metrics = SingleFlight(partial(publisher.metrics, openmetrics.generate_latest))
    pool_state = SingleFlight(publisher.pool)

    @router.get("/metrics")
    @allow("operator")
    async def metrics(request: Request) -> Response:
        if "application/openmetrics-text" in request.headers.get("accept", ""):
            content, media_type = await open_metrics.get(), openmetrics.CONTENT_TYPE_LATEST
        else:
            content, media_type = await text.get(), exposition.CONTENT_TYPE_LATEST
        return Response(content, headers={"Vary": "Accept"}, media_type=media_type)

    @router.get("/pool")
    @allow("operator")
    async def pool(request: Request) -> Response:
        if "text/html" in request.headers.get("accept", ""):
            page = _read("pool.html").replace(b'="/', f'="{root_path}/'.encode())
            return Response(page, 200, HEADERS, "text/html")
        return json_response(await pool_state.get(), headers=HEADERS)

    @router.get("/pool/{name}")
    @allow("operator")
    async def file(name: str) -> Response:
        if name not in FILES:
            raise HTTPException(404)
        return Response(_read(name), 200, HEADERS, FILES[name])

    return router


@cache
def _read(name: str) -> bytes:
    return (PAGE / name).read_bytes()
