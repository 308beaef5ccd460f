"""FastAPI with `async def` and psycopg's AsyncConnectionPool, as psycopg's documentation opens it: in the lifespan.

10 connections, as asyncpg's pool has; the default of 4 was slower. `autocommit`, because one statement needs no
transaction, and psycopg prepares a statement by itself at its fifth run. Rows are dictionaries, which the response
model validates and writes. Hashing goes to a thread.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException, Request
from psycopg import AsyncConnection
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from tests.bench.peers.models import DATABASE_URL, NewUser, PageSize, User, UserChange, hasher
from tests.bench.peers.sql import INSERT_USER, SELECT_USER, SELECT_USERS, UPDATE_USER

Pool = AsyncConnectionPool[AsyncConnection[dict[str, Any]]]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    pool: Pool = AsyncConnectionPool(
        DATABASE_URL,
        connection_class=AsyncConnection[dict[str, Any]],
        kwargs={"autocommit": True, "row_factory": dict_row},
        min_size=10,
        max_size=10,
        open=False,
    )
    async with pool:
        app.state.pool = pool
        yield


async def get_pool(request: Request) -> Pool:
    pool: Pool = request.app.state.pool
    return pool


TheirPool = Annotated[Pool, Depends(get_pool)]

app = FastAPI(lifespan=lifespan)


@app.get("/users/{user_id}", response_model=User)
async def read_user(user_id: int, pool: TheirPool) -> Any:
    async with pool.connection() as conn:
        cursor = await conn.execute(SELECT_USER, (user_id,))
        row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404)
    return row


@app.get("/users", response_model=list[User])
async def list_users(pool: TheirPool, limit: PageSize = 100, after: int = 0) -> Any:
    async with pool.connection() as conn:
        cursor = await conn.execute(SELECT_USERS, (after, limit))
        return await cursor.fetchall()


@app.post("/users", status_code=201, response_model=User)
async def create_user(user: NewUser, pool: TheirPool) -> Any:
    password_hash = await asyncio.to_thread(hasher.hash, user.password)
    try:
        async with pool.connection() as conn:
            cursor = await conn.execute(INSERT_USER, (user.fname, user.lname, user.email, password_hash))
            return await cursor.fetchone()
    except UniqueViolation:
        raise HTTPException(409) from None


@app.patch("/users/{user_id}", response_model=User)
async def change_user(user_id: int, change: UserChange, pool: TheirPool) -> Any:
    async with pool.connection() as conn:
        cursor = await conn.execute(UPDATE_USER, (change.fname, change.lname, change.email, user_id))
        row = await cursor.fetchone()
    if row is None:
        raise HTTPException(404)
    return row
