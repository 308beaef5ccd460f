"""The Prefer header (RFC 7240)."""

import pytest

from service.web.preferences import CountPreference


@pytest.mark.parametrize(
    ("header", "exact"),
    [
        ("", False),
        ("count=exact", True),
        ("Count = exact", True),
        ('count="exact"', True),
        ("count=exact; strict=yes", True),
        ("respond-async, wait=10, count=exact", True),
        ("count=none", False),
        ("count=none, count=exact", False),
        ("count", False),
        ("counts=exact", False),
        ("foo; count=exact", False),
        ('foo="a, count=exact"', False),
        ('foo="', False),
        (",,=,;", False),
    ],
)
def test_the_first_preference_of_a_name_counts(header: str, *, exact: bool) -> None:
    assert CountPreference(prefer=header).exact == exact
