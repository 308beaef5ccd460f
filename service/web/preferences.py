"""The Prefer header (RFC 7240)."""

from typing import Annotated
from urllib.request import parse_http_list

from pydantic import BaseModel, Field

COUNT_EXACT = "count=exact"


class CountPreference(BaseModel):
    """Whether a client prefers to learn how many rows match a list in all. Other preferences are ignored."""

    prefer: Annotated[str, Field(examples=[COUNT_EXACT], description="count=exact adds X-Total-Count.")] = ""

    @property
    def exact(self) -> bool:
        """Whether count=exact is given. The first preference of a name counts (section 2)."""
        for item in parse_http_list(self.prefer):
            name, _, value = item.partition(";")[0].partition("=")
            if name.strip().lower() == "count":
                return value.strip().strip('"') == "exact"
        return False
