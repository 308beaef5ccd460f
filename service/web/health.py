"""Three questions to the service itself: where are things, does the process live, can it serve requests?"""

import time
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.database.watchdog import DEADLINE
from service.web.problems import Problem, answers, json_response, render
from service.web.workers import Workers

PROBE_TIMEOUT = 2.0  # seconds: most orchestrators give a probe as much, or less

NOT_READY = Problem(
    "not-ready", 503, "Requests cannot be served",
    "The check named in `failed` does not pass. Nothing needs to be done if it does so again soon.",
)  # fmt: skip


ROOT = {
    "message": "A users API whose database connections hold under load.",
    "users": "/users",
    "docs": "/docs",
    "readyz": "/readyz",
}
ALIVE = {"status": "alive"}
READY = {"status": "ready"}


class Readiness:
    """The check that fails: "starting", "schema", "database" or "draining"; None when requests can be served."""

    def __init__(self) -> None:
        """Begin as starting."""
        self.failed: str | None = "starting"

    def fails(self, check: str) -> None:
        """Name the check that fails. Draining is the last: nothing comes after it."""
        if self.failed != "draining":
            self.failed = check

    def passed(self) -> None:
        """Have no check that fails."""
        if self.failed != "draining":
            self.failed = None


def routes(readiness: Readiness, workers: Workers, database: Database) -> APIRouter:
    """Return the routes of the three questions."""
    router = APIRouter(tags=["service"])

    @router.get("/", operation_id="root", summary="Where are things?", responses=_example(ROOT))
    async def root() -> Response:
        return json_response(ROOT)

    @router.get("/livez", operation_id="livez", summary="Does the process live?", responses=_example(ALIVE))
    async def livez() -> Response:
        """Answers from the event loop and touches nothing: also when every thread is busy."""
        return json_response(ALIVE)

    @router.get(
        "/readyz", operation_id="readyz", summary="Can requests be served?",
        responses={**_example(READY), **answers({503: NOT_READY}, NOT_READY.code)},
    )  # fmt: skip
    async def readyz() -> Response:
        """Asks the database, over a connection that nobody needs at the moment; busy is not failed."""
        failed = readiness.failed
        if failed is None and workers.idle > 0:
            deadline = time.monotonic() + PROBE_TIMEOUT
            DEADLINE.set(deadline)
            failed = await workers.run(_probe, {"database": database}, start_by=deadline)
        return render(NOT_READY, failed=failed) if failed else json_response(READY)

    return router


def _example(content: dict[str, str]) -> dict[int | str, dict[str, Any]]:
    return {200: {"content": {"application/json": {"schema": {"type": "object"}, "example": content}}}}


def _probe(database: Database) -> str | None:
    try:
        with database.connection() as conn:
            conn.execute("SELECT 1")
    except DatabaseFailure:
        return "database"
    return None
