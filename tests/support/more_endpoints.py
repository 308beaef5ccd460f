"""The service with endpoints as somebody might add them: dependencies, headers, values in place of responses."""

from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import HTTPException
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel

from service import app
from service.database.pool import Database
from service.web.access import OPEN, allow
from service.web.resource import Resource

ended: list[str] = []


class Session(BaseModel):
    """What an endpoint returns, to be validated."""

    name: str
    agent: str


class Choice(BaseModel):
    """A query with a parameter that may be repeated."""

    numbers: list[int]


async def current_user(authorization: Annotated[str, Header()]) -> str:
    """Return who asks. It runs on the event loop, so it must not wait for anything."""
    if not authorization.startswith("Bearer "):
        raise HTTPException(401, "Give a bearer token.", {"WWW-Authenticate": "Bearer"})
    return authorization.removeprefix("Bearer ")


def session(user: Annotated[str, Depends(current_user)]) -> Iterator[str]:
    """Note when it has ended. A plain `def`: FastAPI runs it on the one spare thread, before admission."""
    yield user
    ended.append(user)


def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:
    """Return routes with a dependency, a header, and values in place of responses."""
    router = APIRouter(route_class=route_class)

    @router.get("/session", response_model=Session)
    @allow("write")
    def read_session(name: Annotated[str, Depends(session)], request: Request) -> dict[str, str]:
        with database.connection() as conn:
            conn.execute("SELECT 1")
        return {"name": name, "agent": request.headers["User-Agent"], "secret": "is not shown"}

    @router.get("/sum")
    @allow("write")
    def read_sum(choice: Annotated[Choice, Query()]) -> Response:
        return Response(str(sum(choice.numbers)))

    @router.get("/teapot/{status}")
    @allow("write")
    def refuse(status: int) -> Response:
        raise HTTPException(status, "Ask for something else.")

    @router.get("/broken/{parts}")
    @allow("write")
    def break_off(parts: int) -> Response:
        def body() -> Iterator[bytes]:
            yield from [b"x"] * parts
            raise ValueError("broken")

        return StreamingResponse(body())

    @router.get("/ended")
    @allow("write")
    def read_ended() -> Response:
        return Response(",".join(ended))

    @router.post("/echo", status_code=201)
    @allow("write")
    def echo(value: Session) -> Session:
        return value

    @router.delete("/names/{name}", status_code=204)
    @allow("write")
    def forget(name: str) -> Response:
        assert name
        return Response(status_code=204)

    @router.post("/secret", status_code=204)
    @allow("write")
    def keep(_secret: dict[str, str]) -> Response:
        return Response(status_code=204)

    return router


def create_app() -> FastAPI:
    """Return the service; uvicorn calls this factory."""
    service = app.create_app(resources=[*app.RESOURCES, Resource("/session", routes, {})])

    @service.get("/plain")
    @allow(OPEN)
    async def plain() -> dict[str, str]:
        return {"route": "FastAPI's own"}

    return service
