"""If-Match and If-None-Match, as RFC 9110 has them in sections 8.8.3 and 13.1."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.web.preconditions import PreconditionFailed, Preconditions

ETAGC = st.characters(codec="latin-1", exclude_categories=["Cc"], exclude_characters='" \xa0')
SEPARATOR = st.from_regex(r"[ \t]*,[ \t,]*", fullmatch=True)
VERSIONS = st.integers(1, 2**63 - 1)


def status(version: int, **headers: str) -> int:
    """Return what a read of this version answers."""
    try:
        return Preconditions(**headers).answer(version, "{}").status_code
    except PreconditionFailed:
        return 412


@pytest.mark.parametrize(
    ("header", "if_match", "if_none_match"),
    [
        ('"12"', 200, 304),
        ("*", 200, 304),
        ('"11", "12"', 200, 304),
        (' , "11" ,,\t"12", ', 200, 304),
        ('W/"12"', 412, 304),  # If-Match compares strongly, If-None-Match weakly
        ('"11"', 412, 200),
        ('"012"', 412, 200),
        ('"12x"', 412, 200),
        ('"W/", "1,2", "-12", ""', 412, 200),
        ('"99999999999999999999"', 412, 200),
        ('"9999999999999999999"', 412, 200),  # no bigint
    ],
)
def test_a_read_compares_each_form_of_tags(header: str, if_match: int, if_none_match: int) -> None:
    assert (status(12, if_match=header), status(12, if_none_match=header)) == (if_match, if_none_match)


@pytest.mark.parametrize(
    "header", ["", "12", '"12', '12"', "W/12", 'w/"12"', '"1" "2"', '*, "12"', '"a b"', '"\x7f"', ","]
)
def test_what_is_no_list_of_tags_is_refused_with_its_form(header: str) -> None:
    with pytest.raises(ValidationError, match='with their quotes, such as "12"'):
        Preconditions(if_match=header)


@given(st.lists(VERSIONS, min_size=1), st.lists(st.text(ETAGC)), VERSIONS, st.data())
def test_a_version_matches_when_its_tag_is_in_the_list(
    versions: list[int], others: list[str], version: int, data: st.DataObject
) -> None:
    tags = [f'"{each}"' for each in versions] + [f'"x{other}"' for other in others]
    header = tags[0] + "".join(data.draw(SEPARATOR) + tag for tag in tags[1:])
    assert status(version, if_match=header) == (200 if version in versions else 412)
    assert status(versions[-1], if_none_match=header) == 304


def test_if_match_comes_before_if_none_match() -> None:
    assert status(12, if_match='"11"', if_none_match='"12"') == 412
    assert status(12, if_match='"12"', if_none_match='"12"') == 304
