"""Flask with psycopg_pool, under gunicorn's threads: the classic synchronous service, brought up to date.

One worker with 8 threads and 8 connections, so that no thread waits for one. `autocommit`, as one statement needs no
transaction. Bodies are validated by pydantic, answers made by `jsonify`; a time is told in ISO 8601, as the contract
has it, in place of Flask's HTTP date.
"""

from typing import Any, TypeVar

from flask import Flask, Response, abort, jsonify, request
from psycopg import Connection
from psycopg.errors import UniqueViolation
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool
from pydantic import BaseModel, ValidationError

from tests.bench.peers.models import DATABASE_URL, NewUser, UserChange, hasher
from tests.bench.peers.sql import INSERT_USER, SELECT_USER, SELECT_USERS, UPDATE_USER

Model = TypeVar("Model", bound=BaseModel)
Row = dict[str, Any]

app = Flask(__name__)
app.json.sort_keys = False
app.json.compact = True

pool: ConnectionPool[Connection[Row]] = ConnectionPool(
    DATABASE_URL,
    connection_class=Connection[Row],
    kwargs={"autocommit": True, "row_factory": dict_row},
    min_size=8,
    max_size=8,
    open=True,
)


@app.errorhandler(ValidationError)
def invalid(error: ValidationError) -> tuple[Response, int]:
    return jsonify(error.errors(include_url=False, include_input=False, include_context=False)), 422


@app.get("/users/<int:user_id>")
def read_user(user_id: int) -> Response:
    with pool.connection() as conn:
        row = conn.execute(SELECT_USER, (user_id,)).fetchone()
    return jsonify(public(row or abort(404)))


@app.get("/users")
def list_users() -> Response:
    limit, after = request.args.get("limit", 100, int), request.args.get("after", 0, int)
    if not 1 <= limit <= 1000:
        abort(422)
    with pool.connection() as conn:
        rows = conn.execute(SELECT_USERS, (after, limit)).fetchall()
    return jsonify([public(row) for row in rows])


@app.post("/users")
def create_user() -> tuple[Response, int]:
    user = body(NewUser)
    password_hash = hasher.hash(user.password)
    try:
        with pool.connection() as conn:
            row = conn.execute(INSERT_USER, (user.fname, user.lname, user.email, password_hash)).fetchone()
    except UniqueViolation:
        abort(409)
    return jsonify(public(row or abort(500))), 201


@app.patch("/users/<int:user_id>")
def change_user(user_id: int) -> Response:
    change = body(UserChange)
    with pool.connection() as conn:
        row = conn.execute(UPDATE_USER, (change.fname, change.lname, change.email, user_id)).fetchone()
    return jsonify(public(row or abort(404)))


def body(model: type[Model]) -> Model:
    return model.model_validate(request.get_json())


def public(row: Row) -> Row:
    row["created_at"] = row["created_at"].isoformat()
    row["updated_at"] = row["updated_at"].isoformat()
    return row
