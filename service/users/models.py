"""What comes in, what goes out."""

import re
import unicodedata
from datetime import datetime
from typing import Annotated, Any

from email_validator import EmailNotValidError, validate_email
from pydantic import MISSING, AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.types import StringConstraints
from pydantic_core import PydanticCustomError

LARGEST_ID = 2**63 - 1  # bigint; a larger number would reach PostgreSQL as numeric, which no index serves
LARGEST_CLIENT_ID = 2**31 - 1  # above it ids are generated, so the two never meet

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
DIGITS = re.compile(r"[0-9]{1,19}")

# The messages below are fixed texts: an error never repeats the value, which may be a password.


def _no_nul(value: str) -> str:
    if "\0" in value:
        raise PydanticCustomError("nul", "Input should not contain the NUL character")
    return value


def _name(value: str) -> str:
    if CONTROL.search(value):
        raise PydanticCustomError("control_character", "Name should not contain control characters")
    value = unicodedata.normalize("NFC", value.strip())
    if not 1 <= len(value) <= 100:  # noqa: PLR2004 - the contract's
        raise PydanticCustomError("name_length", "Name should have 1 to 100 characters")
    return value


def _email(value: str) -> str:
    try:
        return validate_email(value, check_deliverability=False).normalized
    except EmailNotValidError:
        raise PydanticCustomError("email", "Input should be an email address such as ada@example.com") from None


def _digits(value: object) -> object:
    if isinstance(value, str) and not DIGITS.fullmatch(value):
        raise PydanticCustomError("digits", "Input should be a whole number in plain decimal digits")
    return value


Text = Annotated[str, AfterValidator(_no_nul)]
Name = Annotated[str, AfterValidator(_name), Field(examples=["Ada"])]
Email = Annotated[str, StringConstraints(max_length=254), AfterValidator(_email), Field(examples=["ada@example.com"])]
Password = Annotated[
    str, StringConstraints(min_length=8, max_length=128), AfterValidator(_no_nul), Field(examples=["correct horse"])
]
UserId = Annotated[int, BeforeValidator(_digits), Field(ge=1, le=LARGEST_ID)]
PageSize = Annotated[int, BeforeValidator(_digits), Field(ge=1, le=1000)]


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

    email: Annotated[Text, Field(examples=["ada@example.com"])]
    password: Annotated[Text, Field(examples=["correct horse"])]


class Page(Body):
    """Which users to list: a page of all of them, or the one with an email."""

    limit: PageSize = 100
    after: UserId | MISSING = Field(default=MISSING, description="The last id of the page before.")
    email: Text | MISSING = Field(default=MISSING, description="The whole email, in any case.")


class User(BaseModel):
    """A user as answered. For the documentation: PostgreSQL makes the JSON."""

    id: int
    fname: str
    lname: str
    email: str
    created_at: datetime
    updated_at: datetime
