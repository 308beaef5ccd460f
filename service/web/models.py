"""Types of a body, a path or a query that every resource can use.

The messages are fixed texts: an error never repeats the value, which may be a password.
"""

import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

MAX_ID = 2**63 - 1  # PostgreSQL's bigint
MAX_TEXT = 65_536  # characters; the default of MAX_BODY_SIZE

SURROGATE = re.compile(r"[\ud800-\udfff]")  # JSON can hold a lone "\ud800", UTF-8 cannot
DIGITS = re.compile(r"[0-9]{1,19}")

NO_NUL = {"pattern": r"^[^\x00]*$"}  # what OpenAPI can say of `_check_text`; Go does not know \u0000


def _check_text(value: str) -> str:
    if len(value) > MAX_TEXT:
        raise PydanticCustomError("text_length", "Input should have at most 65536 characters")
    if "\0" in value or SURROGATE.search(value):
        raise PydanticCustomError("character", "Input should not contain NUL or half a surrogate pair")
    return value


def _check_digits(value: object) -> object:
    if isinstance(value, str) and not DIGITS.fullmatch(value):
        raise PydanticCustomError("digits", "Input should be a whole number in plain decimal digits")
    return value


# A text that PostgreSQL can store.
Text = Annotated[str, AfterValidator(_check_text), Field(json_schema_extra=NO_NUL)]

# A number in a path or a query, such as 12: not +12, 12.0 or " 12".
Digits = BeforeValidator(_check_digits)
Id = Annotated[int, Field(ge=1, le=MAX_ID), Digits]


class Body(BaseModel):
    """A JSON object that allows no unknown field."""

    model_config = ConfigDict(extra="forbid")

    def __repr__(self) -> str:
        """Show no field: one of them may be a password."""
        return f"{type(self).__name__}()"

    __str__ = __repr__
