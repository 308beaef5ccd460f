"""/ links to the rest; /livez tells whether the process lives, and /readyz whether it can serve requests."""

import time
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.database.watchdog import DEADLINE
from service.web.access import OPEN, allow
from service.web.problems import Problem, problem_responses, render
from service.web.responses import json_response
from service.web.routing import EventLoopRoute
from service.web.workers import Workers

PROBE_TIMEOUT = 2.0  # seconds; most orchestrators wait at most this long

NOT_READY = Problem(
    "not-ready", 503, "Requests cannot be served",
    "The check named in `failed` does not pass. Nothing needs to be done if it does so again soon.",
)  # fmt: skip

ALIVE = {"status": "alive"}
READY = {"status": "ready"}


class Readiness:
    """The check that fails: "starting", "schema", "database" or "draining"; None when requests can be served."""

    def __init__(self) -> None:
        """Start with the check "starting" failed."""
        self.failed: str | None = "starting"

    def set_failed(self, check: str | None) -> None:
        """Set the check that fails. "draining" is final."""
        if self.failed != "draining":
            self.failed = check


def routes(
    readiness: Readiness, workers: Workers, database: Database, *, message: str, links: Mapping[str, str]
) -> APIRouter:
    """Return the routes of /, /livez and /readyz. GET / answers with `message` and `links`, such as users: /users."""
    router = APIRouter(route_class=EventLoopRoute, tags=["service"])
    index = {"message": message, **links}

    @router.get("/", operation_id="root", summary="Where are things?", responses=_example(index))
    @allow(OPEN)
    async def root() -> Response:
        return json_response(index)

    @router.get("/livez", operation_id="livez", summary="Does the process live?", responses=_example(ALIVE))
    @allow(OPEN)
    async def livez() -> Response:
        """Answers from the event loop and touches nothing: also when every thread is busy."""
        return json_response(ALIVE)

    @router.get(
        "/readyz", operation_id="readyz", summary="Can requests be served?",
        responses={**_example(READY), **problem_responses([NOT_READY])},
    )  # fmt: skip
    @allow(OPEN)
    async def readyz(request: Request) -> Response:
        """Asks the database, over a connection that nobody needs at the moment; busy is not failed.

        With `?exclude=database`, only this instance counts: the database is the same for all, and a load balancer that
        finds none of them ready has no answer but its own.
        """
        failed = readiness.failed
        if request.query_params.get("exclude") == "database":
            failed = None if failed == "database" else failed
        elif workers.idle and failed in {None, "database"}:  # at a start without a primary, a replica may serve reads
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
            conn.fetchone("SELECT 1", {})
    except DatabaseFailure:
        return "database"
    return None
