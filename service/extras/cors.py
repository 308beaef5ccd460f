"""CORS: which web pages may call the API."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp

from service.web.problems import CORS_REFUSED, render


class Cors(CORSMiddleware):
    """Starlette's middleware, which answers a refused preflight with a problem as every other error."""

    def __init__(self, app: ASGIApp, *, origins: list[str]) -> None:
        """Allow `origins`, with credentials unless "*" is among them: a browser refuses the two together."""
        super().__init__(
            app,
            allow_origins=origins,
            allow_credentials="*" not in origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=["Content-Type", "X-Request-ID"],
            expose_headers=["Link", "Location", "Retry-After", "X-Request-ID"],
        )

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight."""
        response = super().preflight_response(request_headers)
        return response if response.status_code == 200 else render(CORS_REFUSED, headers={"Vary": "Origin"})  # noqa: PLR2004
