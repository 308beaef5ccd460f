"""Conditional requests (RFC 9110, section 13). The ETag of a row is its version in quotes, such as "12"."""

import re
from typing import Annotated

from pydantic import MISSING, AfterValidator, BaseModel, Field
from pydantic_core import PydanticCustomError
from starlette.responses import Response

from service.web.models import MAX_ID
from service.web.responses import NO_STORE, FailureWithHeaders, json_text_response

# A list of entity tags (sections 5.6.1 and 8.8.3). Possessive quantifiers, so that no header takes long.
TAG = r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"'
TAGS = re.compile(rf"[ \t,]*+{TAG}(?:[ \t]*+,[ \t,]*+{TAG})*+[ \t,]*+")
OUR_TAG = re.compile(r'(W/)?"([1-9][0-9]{0,18})"')

# For the WHERE of an UPDATE or DELETE, so that nothing happens between the check and the change.
VERSION_MATCHES = (
    "(%(if_match)s::bigint[] IS NULL OR version = ANY(%(if_match)s)) AND version <> ALL(%(if_none_match)s::bigint[])"
)


class PreconditionFailed(FailureWithHeaders):
    """The row has a version that the preconditions of the request do not allow."""

    def __init__(self, version: int) -> None:
        """Have the answer say which version the row has."""
        super().__init__({"ETag": etag(version)})


def etag(version: int) -> str:
    """Return the ETag of a version."""
    return f'"{version}"'


def _check(value: str) -> str:
    if value.strip(" \t") == "*" or TAGS.fullmatch(value):
        return value.strip(" \t")
    raise PydanticCustomError("entity_tags", 'Input should be * or ETags with their quotes, such as "12", "15"')


def _versions(value: str, *, weak: bool) -> list[int]:
    """Return the versions whose ETags a header lists. Weak ones count only for If-None-Match (section 8.8.3.2)."""
    versions = (int(digits) for is_weak, digits in OUR_TAG.findall(value) if weak or not is_weak)
    return [version for version in versions if version <= MAX_ID]


def _matches(value: str, version: int, *, weak: bool) -> bool:
    return value == "*" or version in _versions(value, weak=weak)


# What OpenAPI can say: a regular expression without possessive quantifiers.
TAGS_SCHEMA = {"pattern": r'^(\*|(W/)?"[!#-~]*"( *, *(W/)?"[!#-~]*")*)$'}

Tags = Annotated[str, AfterValidator(_check), Field(json_schema_extra=TAGS_SCHEMA, examples=['"12"'])]


class Preconditions(BaseModel):
    """The headers that say for which versions of a row a request is meant; by default, for every one."""

    if_match: Tags | MISSING = Field(default=MISSING, description="Do it only if the ETag is one of these.")
    if_none_match: Tags | MISSING = Field(default=MISSING, description="Do it only if the ETag is none of these.")

    @property
    def given(self) -> bool:
        """Whether there is any."""
        return self.if_match is not MISSING or self.if_none_match is not MISSING

    @property
    def parameters(self) -> dict[str, list[int] | None]:
        """The parameters of VERSION_MATCHES."""
        allowed = None if self.if_match in (MISSING, "*") else _versions(self.if_match, weak=False)
        refused = [] if self.if_none_match in (MISSING, "*") else _versions(self.if_none_match, weak=True)
        if self.if_none_match == "*":  # there must be no row: none has an allowed version
            allowed = []
        return {"if_match": allowed, "if_none_match": refused}

    def answer(self, version: int, json: str) -> Response:
        """Return the answer of a read: `json` with its ETag, or 304. Raises PreconditionFailed."""
        headers = {"ETag": etag(version)}
        if self.if_match is not MISSING and not _matches(self.if_match, version, weak=False):
            raise PreconditionFailed(version)
        if self.if_none_match is not MISSING and _matches(self.if_none_match, version, weak=True):
            return Response(status_code=304, headers={**NO_STORE, **headers})
        return json_text_response(json, headers=headers)
