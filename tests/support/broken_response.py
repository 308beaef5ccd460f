"""An application that fails between the head of its answer and the body."""

from starlette.types import Receive, Scope, Send


async def app(scope: Scope, _receive: Receive, send: Send) -> None:
    """Answer /readyz; begin every other answer, and fail."""
    if scope["type"] != "http":
        raise RuntimeError("there is no lifespan")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    if scope["path"] == "/readyz":
        await send({"type": "http.response.body", "body": b""})
