"""What comes in, what goes out."""

import re
import unicodedata
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any

from email_validator import EmailNotValidError, validate_email
from pydantic import MISSING, AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.types import StringConstraints
from pydantic_core import PydanticCustomError

LARGEST_ID = 2**63 - 1  # bigint; a larger number would reach PostgreSQL as numeric, which no index serves
LARGEST_CLIENT_ID = 2**31 - 1  # above it ids are generated, so the two never meet

LONGEST_TEXT = 65_536  # characters, the default of MAX_BODY_SIZE: an older version may have stored any that arrives
LONGEST_NAME = 100  # characters in NFC
LONGEST_RAW_NAME = 4 * LONGEST_NAME  # before it: NFC makes one character of four at most, as in U+1F82
LONGEST_EMAIL = 254  # bytes, given and stored: email-validator's own limit, which it checks last

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
SURROGATE = re.compile(r"[\ud800-\udfff]")  # "\ud800" is JSON and no character: UTF-8 cannot hold it
DIGITS = re.compile(r"[0-9]{1,19}")

# Lengths are checked first: NFC of 64 KB of combining marks takes 0.8 s, in which nothing else runs.
# The messages below are fixed texts: an error never repeats the value, which may be a password.


def _text(value: str) -> str:
    if len(value) > LONGEST_TEXT:
        raise PydanticCustomError("text_length", "Input should have at most 65536 characters")
    if "\0" in value or SURROGATE.search(value):
        raise PydanticCustomError("character", "Input should not contain NUL or half a surrogate pair")
    return value


def _name(value: str) -> str:
    if CONTROL.search(value):
        raise PydanticCustomError("control_character", "Name should not contain control characters")
    name = value.strip()
    if len(name) <= LONGEST_RAW_NAME:
        name = unicodedata.normalize("NFC", name)
    if not 1 <= len(name) <= LONGEST_NAME:
        raise PydanticCustomError("name_length", "Name should have 1 to 100 characters")
    return name


def _email(value: str) -> str:
    with suppress(EmailNotValidError):
        if len(value.encode()) <= LONGEST_EMAIL:
            # `test_environment` lets @example.test in: the network is not asked, so that no name needs to exist.
            return validate_email(value, check_deliverability=False, test_environment=True).normalized
    raise PydanticCustomError("email", "Input should be an email address such as ada@example.com")


def _email_or_text(value: str) -> str:
    """Return an email as it would have been stored; an older version may have stored what is none."""
    try:
        return _email(value)
    except PydanticCustomError:
        return value


def _digits(value: object) -> object:
    if isinstance(value, str) and not DIGITS.fullmatch(value):
        raise PydanticCustomError("digits", "Input should be a whole number in plain decimal digits")
    return value


# What a regular expression can say of the above, for the documentation.
NO_NUL = {"pattern": r"^[^\u0000]*$"}
NAME = {
    "minLength": 1,
    "maxLength": LONGEST_NAME,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*[^\s\u0000-\u001f\u007f-\u009f]+[^\u0000-\u001f\u007f-\u009f]*$",
}

Text = Annotated[str, AfterValidator(_text), Field(json_schema_extra=NO_NUL)]
Name = Annotated[Text, AfterValidator(_name), Field(json_schema_extra=NAME, examples=["Ada"])]
Email = Annotated[
    str, StringConstraints(max_length=LONGEST_EMAIL), AfterValidator(_email),
    Field(json_schema_extra={"format": "email"}, examples=["ada@example.com"]),
]  # fmt: skip
AnyEmail = Annotated[Text, AfterValidator(_email_or_text), Field(examples=["ada@example.com"])]
Password = Annotated[Text, StringConstraints(min_length=8, max_length=128), Field(examples=["correct horse"])]
UserId = Annotated[int, Field(ge=1, le=LARGEST_ID), BeforeValidator(_digits)]
PageSize = Annotated[int, Field(ge=1, le=1000), BeforeValidator(_digits)]


class Body(BaseModel):
    """A JSON object with no other fields than its own."""

    model_config = ConfigDict(extra="forbid")

    def __repr__(self) -> str:
        """Show no field: one of them may be a password."""
        return f"{type(self).__name__}()"

    __str__ = __repr__


class UserReplacement(Body):
    """A user, whole."""

    fname: Name
    lname: Name
    email: Email
    password: Password


class NewUser(UserReplacement):
    """A user to create. Without an id, one is generated."""

    id: Annotated[int, Field(strict=True, ge=1, le=LARGEST_CLIENT_ID, examples=[1])] | MISSING = MISSING


class UserChange(Body):
    """The fields to change, one at least."""

    model_config = ConfigDict(json_schema_extra={"minProperties": 1})

    fname: Name | MISSING = MISSING
    lname: Name | MISSING = MISSING
    email: Email | MISSING = MISSING
    password: Password | MISSING = MISSING

    @model_validator(mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:  # noqa: ANN401 - any JSON
        if value == {}:
            raise PydanticCustomError("empty_change", "Give at least one field to change")
        return value


class Credentials(Body):
    """An email and a password, of any form that an older version may have let in."""

    email: AnyEmail
    password: Annotated[Text, Field(examples=["correct horse"])]


class Page(Body):
    """Which users to list: a page of all of them, or the one with an email."""

    limit: PageSize = 100
    after: UserId | MISSING = Field(default=MISSING, description="The last id of the page before.")
    email: AnyEmail | MISSING = Field(default=MISSING, description="The whole email, in any case.")


class User(BaseModel):
    """A user as answered. For the documentation: PostgreSQL makes the JSON."""

    id: int
    fname: str
    lname: str
    email: str
    created_at: datetime
    updated_at: datetime
