"""CORS: which web pages may call the API."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.web.problems import CORS_REFUSED, render

# For the operator: no web page of another origin may read them, not even one that may call the API.
NEVER = ("/metrics/", "/pool/")


class Cors(CORSMiddleware):
    """Starlette's middleware, which answers a refused preflight with a problem as every other error."""

    def __init__(self, app: ASGIApp, *, origins: list[str]) -> None:
        """Allow `origins`, with credentials unless "*" is among them: a browser refuses the two together."""
        super().__init__(
            app,
            allow_origins=origins,
            allow_credentials="*" not in origins,
            allow_methods=["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"],
            allow_headers=[
                "Authorization", "Content-Type", "Idempotency-Key", "If-Match", "If-None-Match", "Prefer",
                "Read-After", "traceparent", "X-Request-ID",
            ],
            expose_headers=[
                "ETag", "Idempotency-Replayed", "Link", "Location", "Preference-Applied", "Read-After",
                "Read-From", "Retry-After", "X-Request-ID", "X-Total-Count",
            ],
        )  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if f"{scope.get('path')}/".startswith(NEVER):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the response to a preflight."""
        response = super().preflight_response(request_headers)
        return response if response.status_code == 200 else render(CORS_REFUSED, headers={"Vary": "Origin"})  # noqa: PLR2004
