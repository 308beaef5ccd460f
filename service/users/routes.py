"""The endpoints: plain `def`, one thread each, one `with` each. Everything they use is an argument of `routes`.

Each returns a ready Response. FastAPI would send a value through a second thread to validate it.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Query, Response
from fastapi.routing import APIRoute
from psycopg import Error
from pydantic import MISSING
from starlette.convertors import Convertor, register_url_convertor

from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.users import queries
from service.users.errors import USER_PROBLEMS, UserNotFound, WrongCredentials
from service.users.models import Body, Credentials, NewUser, Page, User, UserChange, UserId, UserReplacement
from service.users.passwords import NOBODY, hash_password, is_outdated, is_password
from service.web.endpoint import release_hashing_permit
from service.web.problems import PROBLEMS, Table, answers

Endpoint = TypeVar("Endpoint", bound=Callable[..., Response])

TABLE: Table = {**PROBLEMS, **USER_PROBLEMS}
ALWAYS = ("invalid-request", "overloaded", "database-unavailable", "deadline-exceeded", "internal-error")
WITH_BODY = (*ALWAYS, "malformed-json", "unsupported-media-type", "body-too-large", "body-too-slow")
WRITES = (*WITH_BODY, "rule-violated")


class _UserIdConvertor(Convertor[str]):
    """Leaves /users/authenticate to its own route, so that a GET of it is a 405; what is no id is a 422."""

    regex = "(?!authenticate$)[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def hashes(body: Any) -> bool:  # noqa: ANN401 - any JSON
    """Tell whether a request with this body will hash a password: it needs a core for 19 ms."""
    return isinstance(body, dict) and "password" in body


def _hashing(endpoint: Endpoint) -> Endpoint:
    endpoint.hashes = hashes  # type: ignore[attr-defined]
    return endpoint


def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:  # noqa: C901 - eight small functions
    """Return the routes of /users, admitted by `route_class`."""
    register_url_convertor("user_id", _UserIdConvertor())
    router = APIRouter(tags=["users"], route_class=route_class)

    @router.post(
        "/users", operation_id="createUser", summary="Create a user",
        status_code=201, response_model=User, responses=answers(TABLE, *WRITES, "email-taken", "id-taken"),
    )  # fmt: skip
    @_hashing
    def create_user(user: NewUser) -> Response:
        """Without an `id`, one is generated."""
        fields = _fields(user)
        user_id = None if user.id is MISSING else user.id
        with database.connection() as conn:
            user_id, found = queries.insert_user(conn, user_id, fields)
        return _json(found, status=201, headers={"Location": f"/users/{user_id}"})

    @router.get(
        "/users", operation_id="listUsers", summary="List users",
        response_model=list[User], responses=answers(TABLE, *ALWAYS),
    )  # fmt: skip
    def list_users(page: Annotated[Page, Query()]) -> Response:
        """By id, a page at a time: while there is more, the Link header has the next page."""
        after = 0 if page.after is MISSING else page.after
        with database.connection() as conn:
            if page.email is MISSING:
                found, last = queries.select_users(conn, after, page.limit)
            else:
                found, last = queries.select_users_by_email(conn, page.email, after), None
        link = None if last is None else {"Link": f'</users?limit={page.limit}&after={last}>; rel="next"'}
        return _json(found, headers=link)

    @router.get(
        "/users/{user_id:user_id}", operation_id="readUser", summary="Read a user",
        response_model=User, responses=answers(TABLE, *ALWAYS, "user-not-found"),
    )  # fmt: skip
    def read_user(user_id: UserId) -> Response:
        with database.connection() as conn:
            found = queries.select_user(conn, user_id)
        return _json(found)

    @router.put(
        "/users/{user_id:user_id}", operation_id="replaceUser", summary="Replace a user",
        response_model=User, responses=answers(TABLE, *WRITES, "user-not-found", "email-taken"),
    )  # fmt: skip
    @_hashing
    def replace_user(user_id: UserId, user: UserReplacement) -> Response:
        """Never creates one."""
        fields = _fields(user)
        with database.connection() as conn:
            found = queries.update_user(conn, user_id, fields)
        return _json(found)

    @router.patch(
        "/users/{user_id:user_id}", operation_id="changeUser", summary="Change a user",
        response_model=User, responses=answers(TABLE, *WRITES, "user-not-found", "email-taken"),
    )  # fmt: skip
    @_hashing
    def change_user(user_id: UserId, change: UserChange) -> Response:
        """Only the given fields change."""
        fields = _fields(change)
        with database.connection() as conn:
            found = queries.update_user(conn, user_id, fields)
        return _json(found)

    @router.delete(
        "/users/{user_id:user_id}", operation_id="deleteUser", summary="Delete a user",
        status_code=204, responses=answers(TABLE, *ALWAYS, "user-not-found", "user-referenced", "rule-violated"),
    )  # fmt: skip
    def delete_user(user_id: UserId) -> Response:
        with queries.references(), database.connection() as conn:
            queries.delete_user(conn, user_id)
        return Response(status_code=204)

    @router.post(
        "/users/authenticate", operation_id="authenticateUser", summary="Check an email and a password",
        response_model=User, responses=answers(TABLE, *WITH_BODY, "wrong-credentials"),
    )  # fmt: skip
    @_hashing
    def authenticate_user(credentials: Credentials) -> Response:
        """The same answer after the same time for a wrong password and an unknown email."""
        try:
            with database.connection() as conn:
                user_id, stored, found = queries.select_credentials(conn, credentials.email)
        except UserNotFound:
            user_id, stored, found = 0, NOBODY, ""
        if not is_password(credentials.password, stored) or not user_id:
            raise WrongCredentials
        if is_outdated(stored):
            # The password is right, whatever becomes of this.
            with suppress(DatabaseFailure, Error):
                fresh = hash_password(credentials.password)
                with database.connection() as conn:
                    queries.update_outdated_hash(conn, user_id, stored, fresh)
        return _json(found)

    return router


def _fields(body: Body) -> queries.Fields:
    """Return the columns that `body` gives, its password hashed: 19 ms, so before a connection is borrowed."""
    fields = body.model_dump(exclude={"id"})
    if "password" in fields:
        fields["password_hash"] = hash_password(fields.pop("password"))
        release_hashing_permit()
    return fields


def _json(text: str, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(text.encode() + b"\n", status, headers, "application/json")
