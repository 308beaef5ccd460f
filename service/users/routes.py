"""The endpoints of /users. Each is a plain `def` that runs on one thread and borrows one connection in one `with`.

Each returns a Response: FastAPI would validate any other value on a second thread.
"""

from contextlib import suppress
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Header, Query, Response
from fastapi.routing import APIRoute
from psycopg import Error, IntegrityError
from pydantic import MISSING
from starlette.convertors import Convertor, register_url_convertor

from service.database.errors import DatabaseFailure
from service.database.pool import Database
from service.users import queries
from service.users.errors import (
    USER_PROBLEMS,
    EmailTaken,
    IdTaken,
    TooManyAttempts,
    UserNotFound,
    UserReferenced,
    WrongCredentials,
)
from service.users.models import Credentials, Page, User, UserChange, UserCreation, UserReplacement
from service.users.passwords import DUMMY_HASH, has_password, hash_password, hashes, is_password, needs_rehash
from service.web.access import allow
from service.web.endpoint import name_subject, release_hashing_permit
from service.web.idempotency import ChangeHeaders, Write, WriteHeaders
from service.web.models import Body, Id
from service.web.preconditions import PreconditionFailed, Preconditions
from service.web.preferences import COUNT_EXACT, CountPreference
from service.web.problems import IdempotencyKeyReused, error_responses
from service.web.resource import Resource
from service.web.responses import ETAG, LINK, LOCATION, NOT_MODIFIED, REPLAYED, TOTAL_COUNT, json_text_response


class _UserIdConvertor(Convertor[str]):
    """Any segment but `authenticate`: a GET of /users/authenticate is a 405, and of another bad id a 422."""

    regex = "(?!authenticate$)[^/]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


def routes(database: Database, route_class: type[APIRoute]) -> APIRouter:  # noqa: C901 - eight small functions
    """Return the routes of /users."""
    register_url_convertor("user_id", _UserIdConvertor())
    router = APIRouter(tags=["users"], route_class=route_class)
    change_responses = {
        200: {"headers": ETAG | REPLAYED},
        **error_responses(
            USER_PROBLEMS, IntegrityError, UserNotFound, EmailTaken, PreconditionFailed, IdempotencyKeyReused,
            has_body=True,
        ),
    }  # fmt: skip

    @router.post(
        "/users", operation_id="createUser", summary="Create a user", status_code=201, response_model=User,
        responses={
            201: {"headers": LOCATION | ETAG | REPLAYED},
            **error_responses(
                USER_PROBLEMS, IntegrityError, EmailTaken, IdTaken, IdempotencyKeyReused, has_body=True
            ),
        },
    )  # fmt: skip
    @allow("signup")
    @hashes(has_password)
    def create_user(user: UserCreation, headers: Annotated[WriteHeaders, Header()]) -> Response:
        """Without an `id`, one is generated."""
        fields = _columns(user)
        user_id = None if user.id is MISSING else user.id
        with Write(database, headers, status=201) as write, database.connection() as conn:
            write.outcome = queries.insert_user(conn, write, user_id, fields)
        return write.response("/users")

    @router.get(
        "/users", operation_id="listUsers", summary="List users", response_model=list[User],
        responses={200: {"headers": LINK | TOTAL_COUNT}, **error_responses(USER_PROBLEMS)},
    )  # fmt: skip
    @allow("read")
    def list_users(page: Annotated[Page, Query()], count: Annotated[CountPreference, Header()]) -> Response:
        """By id, a page at a time: while there is more, the Link header has the next page.

        A user is listed when all filters match. A filter that matches a million users or more, but only far from where
        the page begins, can reach STATEMENT_TIMEOUT (504): begin nearer, with `after`, or at the other end, with
        `order`. To count ten million matches takes 2 s.
        """
        with database.connection() as conn:
            users, last = queries.find_users(conn, page)
            total = queries.count_users(conn, page) if count.exact else None
        return json_text_response(users, headers=_list_headers(page, last, total))

    @router.get(
        "/users/{user_id:user_id}", operation_id="readUser", summary="Read a user", response_model=User,
        responses={
            200: {"headers": ETAG},
            304: NOT_MODIFIED,
            **error_responses(USER_PROBLEMS, UserNotFound, PreconditionFailed),
        },
    )  # fmt: skip
    @allow("read")
    def read_user(user_id: Id, only_if: Annotated[Preconditions, Header()]) -> Response:
        with database.connection() as conn:
            version, user = queries.select_user(conn, user_id)
        return only_if.answer(version, user)

    @router.put(
        "/users/{user_id:user_id}", operation_id="replaceUser", summary="Replace a user", response_model=User,
        responses=change_responses,
    )  # fmt: skip
    @allow("write")
    @hashes(has_password)
    def replace_user(user_id: Id, user: UserReplacement, headers: Annotated[ChangeHeaders, Header()]) -> Response:
        """Never creates one."""
        fields = _columns(user)
        with Write(database, headers) as write, database.connection() as conn:
            write.outcome = queries.update_user(conn, write, user_id, fields, headers)
        return write.response()

    @router.patch(
        "/users/{user_id:user_id}", operation_id="changeUser", summary="Change a user", response_model=User,
        responses=change_responses,
    )  # fmt: skip
    @allow("write")
    @hashes(has_password)
    def change_user(user_id: Id, change: UserChange, headers: Annotated[ChangeHeaders, Header()]) -> Response:
        """Only the given fields change."""
        fields = _columns(change)
        with Write(database, headers) as write, database.connection() as conn:
            write.outcome = queries.update_user(conn, write, user_id, fields, headers)
        return write.response()

    @router.delete(
        "/users/{user_id:user_id}", operation_id="deleteUser", summary="Delete a user", status_code=204,
        responses={
            204: {"headers": REPLAYED},
            **error_responses(
                USER_PROBLEMS, IntegrityError, UserNotFound, UserReferenced, PreconditionFailed, IdempotencyKeyReused
            ),
        },
    )  # fmt: skip
    @allow("write")
    def delete_user(user_id: Id, headers: Annotated[ChangeHeaders, Header()]) -> Response:
        with Write(database, headers, status=204) as write, database.connection() as conn:
            write.outcome = queries.delete_user(conn, write, user_id, headers)
        return write.response()

    @router.post(
        "/users/authenticate", operation_id="authenticateUser", summary="Check an email and a password",
        response_model=User, responses=error_responses(USER_PROBLEMS, WrongCredentials, TooManyAttempts, has_body=True),
    )  # fmt: skip
    @allow("signup")
    @hashes(has_password)
    def authenticate_user(credentials: Credentials) -> Response:
        """The same answer after the same time for a wrong password and an unknown email.

        After 5 failures for an email, known or not, each further one makes the next login wait: 5 seconds, then twice
        as long each time, 15 minutes at most. A success ends that.
        """
        with database.connection() as conn:
            user_id, stored, user = queries.claim_login(conn, credentials.email) or (0, DUMMY_HASH, "")
        if user_id:
            name_subject(user_id)
        if not is_password(credentials.password, stored) or not user_id:
            raise WrongCredentials
        # The password is right, so a failure from here on must not fail the login.
        with suppress(DatabaseFailure, Error), database.connection() as conn:
            queries.forget_failures(conn, credentials.email)
        if needs_rehash(stored):
            with suppress(DatabaseFailure, Error):
                new = hash_password(credentials.password)
                with database.connection() as conn:
                    queries.replace_hash(conn, user_id, stored, new)
        return json_text_response(user)

    return router


def _list_headers(page: Page, last: int | None, total: int | None) -> dict[str, str]:
    """Return the link to the page after the id `last`, and the number of all matches, as far as there are such."""
    headers = {}
    if last is not None:
        order = {"order": page.order} if page.order != "id" else {}
        query = urlencode({"limit": page.limit, **order, **page.filters, "after": last})
        headers["Link"] = f'</users?{query}>; rel="next"'
    if total is not None:
        headers |= {"X-Total-Count": str(total), "Preference-Applied": COUNT_EXACT}
    return headers


def _columns(body: Body) -> queries.Fields:
    """Return the columns that `body` sets. Hashes its password for 19 ms: call it before borrowing a connection."""
    columns = body.model_dump(exclude={"id"})
    if "password" in columns:
        columns["password_hash"] = hash_password(columns.pop("password"))
        release_hashing_permit()
    return columns


USERS = Resource("/users", routes, USER_PROBLEMS)
