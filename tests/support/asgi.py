"""Call the application in this process, without a server or a database: what is refused needs neither."""

import asyncio
import logging
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

import httpx

from service.app import create_app
from service.database.pool import Database
from service.database.watchdog import Watchdog
from service.settings import Settings
from service.web.admission import Admission
from service.web.endpoint import Runtime
from service.web.stalled_commits import StalledCommits
from service.web.workers import Workers

PATIENCE = 10.0  # seconds: what waits for the database would wait for ever


def runtime(admission: Admission) -> Runtime:
    """Return what endpoints run on, which has not started."""
    workers = Workers(1)
    stalled_commits = StalledCommits(workers, Database(1, Watchdog(leak_threshold=1)), patience=1)
    return Runtime(workers, admission, admission, stalled_commits, deadline=1)


class Application:
    """The application, until the `with` block ends. It has not started, so no endpoint runs."""

    def __enter__(self) -> Self:
        root = logging.getLogger()
        self._logging = root.handlers[:], root.level
        self._app = create_app(Settings())
        self._runner = asyncio.Runner()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.close()
        root = logging.getLogger()
        root.handlers[:], level = self._logging
        root.setLevel(level)

    def request(
        self, method: str, target: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> httpx.Response:
        """Return the response; `target` is sent as it is. The body is declared as JSON unless `headers` are given."""
        return self._runner.run(self._request(method, target, body, headers))

    async def _request(
        self, method: str, target: str, body: bytes, headers: Mapping[str, str] | None
    ) -> httpx.Response:
        path, _, query = target.partition("?")
        given = {"Content-Type": "application/json"} if headers is None else headers
        lines = {"Host": "localhost", "Content-Length": str(len(body)), **given}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),  # as uvicorn decodes it
            "raw_path": path.encode("ascii"),
            "query_string": query.encode("ascii"),
            "root_path": "",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in lines.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8000),
            "state": {},
        }
        sent: list[dict[str, Any]] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        async with asyncio.timeout(PATIENCE):
            await self._app(scope, receive, send)  # type: ignore[arg-type]
        start, *parts = sent
        content = b"".join(part.get("body", b"") for part in parts)
        return httpx.Response(start["status"], headers=start["headers"], content=content)
