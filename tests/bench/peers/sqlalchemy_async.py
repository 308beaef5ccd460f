"""FastAPI with `async def` and a SQLAlchemy AsyncSession over asyncpg, lent by a `Depends` with `yield`.

As SQLAlchemy's documentation has it: `expire_on_commit=False`, so that an object can be read after the commit with no
further statement. The pool keeps 15 connections, as many as the default of 5 and 10 more on demand comes to under
load: the default closes and opens those 10 again and again. Hashing goes to a thread.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from tests.bench.peers.models import DATABASE_URL, NewUser, PageSize, User, UserChange, hasher
from tests.bench.peers.tables import UserRow

engine = create_async_engine(DATABASE_URL.replace("postgresql:", "postgresql+asyncpg:"), pool_size=15, max_overflow=0)
async_session = async_sessionmaker(engine, expire_on_commit=False)


async def get_session() -> AsyncIterator[AsyncSession]:
    async with async_session() as session:
        yield session


Db = Annotated[AsyncSession, Depends(get_session)]

app = FastAPI()


@app.get("/users/{user_id}", response_model=User)
async def read_user(user_id: int, db: Db) -> Any:
    user = await db.get(UserRow, user_id)
    if user is None:
        raise HTTPException(404)
    return user


@app.get("/users", response_model=list[User])
async def list_users(db: Db, limit: PageSize = 100, after: int = 0) -> Any:
    found = await db.scalars(select(UserRow).where(UserRow.id > after).order_by(UserRow.id).limit(limit))
    return found.all()


@app.post("/users", status_code=201, response_model=User)
async def create_user(new: NewUser, db: Db) -> Any:
    password_hash = await asyncio.to_thread(hasher.hash, new.password)
    user = UserRow(**new.model_dump(exclude={"password"}), password_hash=password_hash)
    db.add(user)
    try:
        await db.commit()
    except IntegrityError:
        raise HTTPException(409) from None
    return user


@app.patch("/users/{user_id}", response_model=User)
async def change_user(user_id: int, change: UserChange, db: Db) -> Any:
    user = await db.get(UserRow, user_id)
    if user is None:
        raise HTTPException(404)
    for name, value in change.model_dump(exclude_unset=True).items():
        setattr(user, name, value)
    await db.commit()
    return user
