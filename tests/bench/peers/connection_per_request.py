"""FastAPI with `def` and a connection per request: `with psycopg.connect(...)` in each endpoint, no pool.

What a first version of many services does. Up to 40 connections are open at once, as AnyIO has 40 threads.
"""

from typing import Any

import psycopg
from fastapi import FastAPI, HTTPException
from psycopg.errors import UniqueViolation
from psycopg.rows import DictRow, dict_row

from tests.bench.peers.models import DATABASE_URL, NewUser, PageSize, User, UserChange, hasher
from tests.bench.peers.sql import INSERT_USER, SELECT_USER, SELECT_USERS, UPDATE_USER

app = FastAPI()


def connect() -> psycopg.Connection[DictRow]:
    return psycopg.connect(DATABASE_URL, autocommit=True, row_factory=dict_row)


@app.get("/users/{user_id}", response_model=User)
def read_user(user_id: int) -> Any:
    with connect() as conn:
        row = conn.execute(SELECT_USER, (user_id,)).fetchone()
    if row is None:
        raise HTTPException(404)
    return row


@app.get("/users", response_model=list[User])
def list_users(limit: PageSize = 100, after: int = 0) -> Any:
    with connect() as conn:
        return conn.execute(SELECT_USERS, (after, limit)).fetchall()


@app.post("/users", status_code=201, response_model=User)
def create_user(user: NewUser) -> Any:
    password_hash = hasher.hash(user.password)
    try:
        with connect() as conn:
            return conn.execute(INSERT_USER, (user.fname, user.lname, user.email, password_hash)).fetchone()
    except UniqueViolation:
        raise HTTPException(409) from None


@app.patch("/users/{user_id}", response_model=User)
def change_user(user_id: int, change: UserChange) -> Any:
    with connect() as conn:
        row = conn.execute(UPDATE_USER, (change.fname, change.lname, change.email, user_id)).fetchone()
    if row is None:
        raise HTTPException(404)
    return row
