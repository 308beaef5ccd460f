"""FastAPI with `async def` and an asyncpg pool, where PostgreSQL makes the JSON and a ready Response passes it on.

This is as fast as FastAPI goes with a database: no row becomes an object and no response model validates what the
database wrote. Hashing goes to a thread.
"""

import asyncio

import asyncpg
from fastapi import FastAPI, HTTPException, Request, Response

from tests.bench.peers.asyncpg_pool import lifespan
from tests.bench.peers.models import NewUser, PageSize, UserChange, hasher
from tests.bench.peers.sql_json import INSERT_USER, SELECT_USER, SELECT_USERS, UPDATE_USER

app = FastAPI(lifespan=lifespan)


def json_response(user: str | None, status: int = 200) -> Response:
    if user is None:
        raise HTTPException(404)
    return Response(user, status, media_type="application/json")


@app.get("/users/{user_id}")
async def read_user(user_id: int, request: Request) -> Response:
    return json_response(await request.app.state.pool.fetchval(SELECT_USER, user_id))


@app.get("/users")
async def list_users(request: Request, limit: PageSize = 100, after: int = 0) -> Response:
    return json_response(await request.app.state.pool.fetchval(SELECT_USERS, after, limit))


@app.post("/users", status_code=201)
async def create_user(user: NewUser, request: Request) -> Response:
    password_hash = await asyncio.to_thread(hasher.hash, user.password)
    values = user.fname, user.lname, user.email, password_hash
    try:
        return json_response(await request.app.state.pool.fetchval(INSERT_USER, *values), 201)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409) from None


@app.patch("/users/{user_id}")
async def change_user(user_id: int, change: UserChange, request: Request) -> Response:
    values = change.fname, change.lname, change.email, user_id
    return json_response(await request.app.state.pool.fetchval(UPDATE_USER, *values))
