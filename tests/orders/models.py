"""What clients send, and what they receive."""

from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, Field
from pydantic.types import StringConstraints

from service.web.models import Body, Id, Text

MAX_JSON_INTEGER = 2**53 - 1  # the largest that every JSON parser keeps exact (RFC 8259, section 6)


class OrderCreation(Body):
    """An order to create."""

    user_id: Annotated[int, Field(strict=True, ge=1, le=MAX_JSON_INTEGER, examples=[1])]
    item: Annotated[Text, StringConstraints(min_length=1, max_length=200), Field(examples=["A book"])]


class Page(Body):
    """The orders to list."""

    after: Annotated[Id | None, Field(description="The last id of the page before.")] = None


class Order(BaseModel):
    """An order in a response. For OpenAPI only: PostgreSQL makes the JSON."""

    id: int
    user_id: int
    item: str
    created_at: datetime
