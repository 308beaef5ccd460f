"""FastAPI with `async def` and an asyncpg pool: the form that benchmarks of Python services recommend.

A statement needs no transaction around it, so `pool.fetchrow` it is. An endpoint returns the rows, and FastAPI
validates and writes them with the response model by pydantic's Rust code, straight to bytes. Hashing goes to a thread.
"""

import asyncio
from typing import Any

import asyncpg
from fastapi import FastAPI, HTTPException, Request

from tests.bench.peers.asyncpg_pool import lifespan
from tests.bench.peers.models import NewUser, PageSize, User, UserChange, hasher

COLUMNS = "id, fname, lname, email, created_at, updated_at"

SELECT_USER = f'SELECT {COLUMNS} FROM "user" WHERE id = $1'

SELECT_USERS = f'SELECT {COLUMNS} FROM "user" WHERE id > $1 ORDER BY id LIMIT $2'

INSERT_USER = f"""
    INSERT INTO "user" (fname, lname, email, password_hash)
    VALUES ($1, $2, $3, $4)
    RETURNING {COLUMNS}
"""

UPDATE_USER = f"""
    UPDATE "user"
    SET fname = coalesce($1, fname), lname = coalesce($2, lname), email = coalesce($3, email), updated_at = now()
    WHERE id = $4
    RETURNING {COLUMNS}
"""


app = FastAPI(lifespan=lifespan)


@app.get("/users/{user_id}", response_model=User)
async def read_user(user_id: int, request: Request) -> Any:
    row = await request.app.state.pool.fetchrow(SELECT_USER, user_id)
    if row is None:
        raise HTTPException(404)
    return dict(row)


@app.get("/users", response_model=list[User])
async def list_users(request: Request, limit: PageSize = 100, after: int = 0) -> Any:
    return [dict(row) for row in await request.app.state.pool.fetch(SELECT_USERS, after, limit)]


@app.post("/users", status_code=201, response_model=User)
async def create_user(user: NewUser, request: Request) -> Any:
    password_hash = await asyncio.to_thread(hasher.hash, user.password)
    try:
        row = await request.app.state.pool.fetchrow(INSERT_USER, user.fname, user.lname, user.email, password_hash)
    except asyncpg.UniqueViolationError:
        raise HTTPException(409) from None
    return dict(row)


@app.patch("/users/{user_id}", response_model=User)
async def change_user(user_id: int, change: UserChange, request: Request) -> Any:
    row = await request.app.state.pool.fetchrow(UPDATE_USER, change.fname, change.lname, change.email, user_id)
    if row is None:
        raise HTTPException(404)
    return dict(row)
