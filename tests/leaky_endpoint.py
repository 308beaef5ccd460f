"""The service with one endpoint more, which borrows a connection and forgets to give it back."""

from contextlib import AbstractContextManager

from fastapi import APIRouter, FastAPI, Response
from fastapi.routing import APIRoute

from service import app
from service.database.connection import PooledConnection
from service.database.pool import Database
from service.users import routes as users

forgotten: list[AbstractContextManager[PooledConnection]] = []


def create_app() -> FastAPI:
    """Return it; to be started by uvicorn as a factory."""
    usual = users.routes

    def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:
        router = usual(database, route_class)

        @router.get("/forget")
        def forget() -> Response:
            forgotten.append(database.connection())
            forgotten[-1].__enter__().execute("SELECT 1")
            return Response()

        return router

    users.routes = routes
    return app.create_app()
