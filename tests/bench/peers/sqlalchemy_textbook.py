"""FastAPI with `def`, and a SQLAlchemy session that a `Depends` with `yield` lends: the textbook form.

So it stands in FastAPI's tutorial, with its SessionLocal and get_db, and so most services copied it. The engine has
its defaults: QueuePool, 5 connections and 10 more on demand, 30 s to wait for one. Nothing is set otherwise, since
hardly anybody does. The driver is psycopg 3.
"""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from sqlalchemy import create_engine, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, sessionmaker

from tests.bench.peers.models import DATABASE_URL, NewUser, PageSize, User, UserChange, hasher
from tests.bench.peers.tables import UserRow

engine = create_engine(DATABASE_URL.replace("postgresql:", "postgresql+psycopg:"))
SessionLocal = sessionmaker(engine, autoflush=False)


def get_db() -> Iterator[Session]:
    db = SessionLocal()
    try:
        yield db
    finally:
        db.close()


Db = Annotated[Session, Depends(get_db)]

app = FastAPI()


@app.get("/users/{user_id}", response_model=User)
def read_user(user_id: int, db: Db) -> Any:
    user = db.get(UserRow, user_id)
    if user is None:
        raise HTTPException(404)
    return user


@app.get("/users", response_model=list[User])
def list_users(db: Db, limit: PageSize = 100, after: int = 0) -> Any:
    return db.scalars(select(UserRow).where(UserRow.id > after).order_by(UserRow.id).limit(limit)).all()


@app.post("/users", status_code=201, response_model=User)
def create_user(new: NewUser, db: Db) -> Any:
    user = UserRow(**new.model_dump(exclude={"password"}), password_hash=hasher.hash(new.password))
    db.add(user)
    try:
        db.commit()
    except IntegrityError:
        raise HTTPException(409) from None
    db.refresh(user)
    return user


@app.patch("/users/{user_id}", response_model=User)
def change_user(user_id: int, change: UserChange, db: Db) -> Any:
    user = db.get(UserRow, user_id)
    if user is None:
        raise HTTPException(404)
    for name, value in change.model_dump(exclude_unset=True).items():
        setattr(user, name, value)
    db.commit()
    db.refresh(user)
    return user
