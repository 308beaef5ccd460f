"""What clients send, and what they receive.

Check the length of a text before anything else: NFC of 64 KB of combining marks blocks the event loop for 0.8 s.
The messages are fixed texts: an error never repeats the value, which may be a password.
"""

import re
import unicodedata
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from typing import Annotated, Any, Literal

from email_validator import EmailNotValidError, validate_email
from pydantic import MISSING, AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic.types import StringConstraints
from pydantic_core import PydanticCustomError

from service.web.models import MAX_ID, Body, Digits, Id, Text

MAX_CLIENT_ID = 2**31 - 1  # generated ids are larger, so the two never collide
MAX_NAME = 100  # characters in NFC
MAX_RAW_NAME = 4 * MAX_NAME  # before NFC, which composes at most four characters into one, as in U+1F82
MAX_EMAIL = 254  # bytes; email-validator has the same limit, but checks it last
MAX_IDS = 100  # in one request

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
ID = re.compile(r"[1-9][0-9]{0,18}")  # no leading zero, so that OpenAPI's pattern says the same
TIME = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)

# Most emails are of this form: their domain is checked once, and their local part stays. Takes 2 µs in place of 25.
# A local part of letters alone may be the name of a role, such as Postmaster, which is written in lower case.
PLAIN_LOCAL_PART = re.compile(r"(?=.*[0-9._+-])[A-Za-z0-9_+-]+(\.[A-Za-z0-9_+-]+)*")
PLAIN_DOMAIN = re.compile(r"(?!.*xn--)[A-Za-z0-9.-]+")


def _check_name(value: str) -> str:
    if CONTROL.search(value):
        raise PydanticCustomError("control_character", "Name should not contain control characters")
    name = _normalize(value.strip())
    if not 1 <= len(name) <= MAX_NAME:
        raise PydanticCustomError("name_length", "Name should have 1 to 100 characters")
    return name


def _normalize(name: str) -> str:
    """Return a name in NFC; as it is when that is too long to be a name."""
    return unicodedata.normalize("NFC", name) if len(name) <= MAX_RAW_NAME else name


def _validate_email(value: str) -> str:
    # No DNS query: the domain need not exist. `test_environment` allows @example.test.
    return validate_email(value, check_deliverability=False, test_environment=True).normalized


@lru_cache(maxsize=1024)
def _normalize_domain(domain: str) -> str:
    return _validate_email(f"a@{domain}")[2:]


def _check_email(value: str) -> str:
    with suppress(EmailNotValidError):
        if len(value.encode()) <= MAX_EMAIL:
            local, _, domain = value.partition("@")
            if PLAIN_LOCAL_PART.fullmatch(local) and PLAIN_DOMAIN.fullmatch(domain):
                return f"{local}@{_normalize_domain(domain)}"
            return _validate_email(value)
    raise PydanticCustomError("email", "Input should be an email address such as ada@example.com")


def _normalize_email(value: str) -> str:
    """Return an email as sign-up stores it. Any other text stays: an older version may have stored it."""
    try:
        return _check_email(value)
    except PydanticCustomError:
        return value


def _check_no_space(value: str) -> str:
    if re.search(r"\s", value):  # no email has any: a + was sent as it is
        raise PydanticCustomError("email_space", "Email should have no space: in a URL, write + as %2B")
    return value


def _check_prefix(value: str) -> str:
    prefix = _normalize(value)
    if not 1 <= len(prefix) <= MAX_NAME:
        raise PydanticCustomError("prefix_length", "Input should have 1 to 100 characters")
    return prefix


def _check_ids(value: str) -> str:
    ids = value.split(",", MAX_IDS)
    if len(ids) > MAX_IDS or not all(ID.fullmatch(each) and int(each) <= MAX_ID for each in ids):
        raise PydanticCustomError("ids", "Input should be 1 to 100 ids in plain decimal digits, separated by commas")
    return value


def _check_time(value: str) -> str:
    """Return an RFC 3339 time in UTC."""
    if " " in value:  # a + was sent as it is
        raise PydanticCustomError("time_space", "Time should have no space: in a URL, write + as %2B")
    with suppress(ValueError, OverflowError):
        if TIME.fullmatch(value):
            return datetime.fromisoformat(value.upper()).astimezone(UTC).isoformat().replace("+00:00", "Z")
    raise PydanticCustomError("time", "Input should be a time with an offset such as 2026-11-23T08:50:46Z")


# What OpenAPI can say of a name: a regular expression.
NAME_SCHEMA = {
    "minLength": 1,
    "maxLength": MAX_NAME,
    "pattern": r"^[^\x00-\x1f\x7f-\x9f]*[^\s\x00-\x1f\x7f-\x9f]+[^\x00-\x1f\x7f-\x9f]*$",
}

Name = Annotated[Text, AfterValidator(_check_name), Field(json_schema_extra=NAME_SCHEMA, examples=["Ada"])]
LastName = Annotated[Name, Field(examples=["Lovelace"])]
Email = Annotated[
    str, StringConstraints(max_length=MAX_EMAIL), AfterValidator(_check_email),
    Field(json_schema_extra={"format": "email"}, examples=["ada@example.com"]),
]  # fmt: skip
AnyEmail = Annotated[Text, AfterValidator(_normalize_email), Field(examples=["ada@example.com"])]
Password = Annotated[Text, StringConstraints(min_length=8, max_length=128), Field(examples=["correct horse"])]
Time = Annotated[datetime, Field(description="In UTC.", examples=["2026-11-23T08:50:46.876168Z"])]
PageSize = Annotated[int, Field(ge=1, le=1000), Digits]
Ids = Annotated[
    str, AfterValidator(_check_ids),
    Field(json_schema_extra={"pattern": "^[1-9][0-9]{0,18}(,[1-9][0-9]{0,18}){0,99}$"}, examples=["1,2,3"]),
]  # fmt: skip
Prefix = Annotated[
    Text, AfterValidator(_check_prefix),
    Field(json_schema_extra={"minLength": 1, "maxLength": MAX_NAME}, examples=["love"]),
]  # fmt: skip
Since = Annotated[
    str, AfterValidator(_check_time),
    Field(json_schema_extra={"format": "date-time"}, examples=["2026-11-23T08:50:46Z"]),
]  # fmt: skip


class UserReplacement(Body):
    """Every field of a user but the id."""

    fname: Name
    lname: LastName
    email: Email
    password: Password


class UserCreation(UserReplacement):
    """A user to create. Without an id, the service generates one."""

    id: Annotated[int, Field(strict=True, ge=1, le=MAX_CLIENT_ID, examples=[1])] | MISSING = MISSING


class UserChange(Body):
    """The fields to change, at least one."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    fname: Name | MISSING = MISSING
    lname: LastName | MISSING = MISSING
    email: Email | MISSING = MISSING
    password: Password | MISSING = MISSING

    @model_validator(mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON
        if value == {}:
            raise PydanticCustomError("empty_change", "Give at least one field to change")
        return value


class Credentials(Body):
    """An email and a password, in any form that an older version accepted."""

    email: AnyEmail
    password: Annotated[Text, Field(examples=["correct horse"])]


class Page(Body):
    """The users to list: those that all given filters match, a page at a time."""

    limit: PageSize = 100
    order: Literal["id", "-id"] = Field(default="id", description="By id; -id has the largest first.")
    after: Id | MISSING = Field(default=MISSING, description="The last id of the page before, in the same order.")
    id: Ids | MISSING = Field(default=MISSING, description="At most 100 ids, separated by commas.")
    email: Annotated[AnyEmail, AfterValidator(_check_no_space)] | MISSING = Field(
        default=MISSING,
        description="The whole email, in any case; + is written as %2B.",
        json_schema_extra={"pattern": r"^[^\x00\x1c-\x1f\x85\s]*$"},
    )
    q: Prefix | MISSING = Field(
        default=MISSING, description="The beginning of the email or of the last name, in any case."
    )
    updated_since: Since | MISSING = Field(
        default=MISSING, description="Users changed at this time or later (RFC 3339); + is written as %2B."
    )

    @property
    def filters(self) -> dict[str, str]:
        """The filters that are given, by the names of their parameters."""
        given = {name: getattr(self, name) for name in ("id", "email", "q", "updated_since")}
        return {name: value for name, value in given.items() if value is not MISSING}


class User(BaseModel):
    """A user in a response. For OpenAPI only: PostgreSQL makes the JSON."""

    id: Annotated[int, Field(examples=[1])]
    fname: Annotated[str, Field(examples=["Ada"])]
    lname: Annotated[str, Field(examples=["Lovelace"])]
    email: Annotated[str, Field(examples=["ada@example.com"])]
    created_at: Time
    updated_at: Time
