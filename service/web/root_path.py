"""A path, such as /api, under which a proxy shows the service: ROOT_PATH."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

LINKS = {b"location": b"/", b"link": b"</"}  # the headers that hold a path of the service, and how that begins


class RootPath:
    """Accepts paths with and without the root path, as only some proxies strip it, and adds it to those it sends."""

    def __init__(self, app: ASGIApp, *, root_path: str) -> None:
        self.app = app
        self.root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""

        async def send_with_root_path(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, self._add(name, value)) for name, value in message["headers"]]
            await send(message)

        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = strip_root_path(scope["path"], self.root_path)
        await self.app({**scope, "path": path}, receive, send_with_root_path)

    def _add(self, name: bytes, value: bytes) -> bytes:
        beginning = LINKS.get(name.lower())
        if not beginning or not value.startswith(beginning):
            return value
        return value.replace(beginning, beginning[:-1] + self.root_path.encode() + b"/", 1)


def strip_root_path(path: str, root_path: str) -> str:
    """Return `path` without `root_path`, if it begins with that."""
    if path == root_path:
        return "/"
    return path.removeprefix(root_path) if path.startswith(f"{root_path}/") else path
