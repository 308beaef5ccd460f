"""Bare Starlette and an asyncpg pool: PostgreSQL makes the JSON, pydantic checks the bodies, a thread hashes."""

import asyncio
from typing import Any

import asyncpg
from pydantic import BaseModel, ValidationError
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tests.bench.peers.asyncpg_pool import lifespan
from tests.bench.peers.models import NewUser, PageSize, UserChange, hasher
from tests.bench.peers.sql_json import INSERT_USER, SELECT_USER, SELECT_USERS, UPDATE_USER


class Page(BaseModel):
    limit: PageSize = 100
    after: int = 0


async def answer(request: Request, statement: str, *values: Any, status: int = 200) -> Response:
    found = await request.app.state.pool.fetchval(statement, *values)
    if found is None:
        raise HTTPException(404)
    return Response(found, status, media_type="application/json")


async def read_user(request: Request) -> Response:
    return await answer(request, SELECT_USER, request.path_params["user_id"])


async def list_users(request: Request) -> Response:
    page = Page.model_validate(dict(request.query_params))
    return await answer(request, SELECT_USERS, page.after, page.limit)


async def create_user(request: Request) -> Response:
    user = NewUser.model_validate_json(await request.body())
    password_hash = await asyncio.to_thread(hasher.hash, user.password)
    return await answer(request, INSERT_USER, user.fname, user.lname, user.email, password_hash, status=201)


async def change_user(request: Request) -> Response:
    change = UserChange.model_validate_json(await request.body())
    user_id = request.path_params["user_id"]
    return await answer(request, UPDATE_USER, change.fname, change.lname, change.email, user_id)


async def invalid(_request: Request, exc: Exception) -> Response:
    assert isinstance(exc, ValidationError)
    return Response(exc.json(include_input=False), 422, media_type="application/json")


async def taken(_request: Request, _exc: Exception) -> Response:
    return Response(status_code=409)


app = Starlette(
    routes=[
        Route("/users/{user_id:int}", read_user),
        Route("/users/{user_id:int}", change_user, methods=["PATCH"]),
        Route("/users", list_users),
        Route("/users", create_user, methods=["POST"]),
    ],
    exception_handlers={ValidationError: invalid, asyncpg.UniqueViolationError: taken},
    lifespan=lifespan,
)
