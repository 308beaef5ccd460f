"""The service with one endpoint more, which borrows a connection and forgets to give it back."""

from contextlib import AbstractContextManager

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute

from service import app
from service.database.connection import PooledConnection
from service.database.pool import Database
from service.web.access import allow
from service.web.resource import Resource

forgotten: list[AbstractContextManager[PooledConnection]] = []


def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:
    """Return that endpoint."""
    router = APIRouter(route_class=route_class)

    @router.get("/forget")
    @allow("write")
    def forget() -> Response:
        forgotten.append(database.connection())
        forgotten[-1].__enter__().execute("SELECT 1")
        return Response()

    return router


def create_app() -> FastAPI:
    """Return it; to be started by uvicorn as a factory."""
    return app.create_app(resources=[*app.RESOURCES, Resource("/forget", routes, {})])
