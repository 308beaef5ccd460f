"""Any text, in every field: refused by ValidationError or taken by the contract, and lengths are checked first."""

import sys
import unicodedata
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import email_validator
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from service.users import models
from service.users.models import Credentials, Page, UserChange, UserCreation, UserReplacement
from tests.support.users import new_user

RIGHT: dict[type[BaseModel], dict[str, Any]] = {
    UserCreation: new_user(),
    UserReplacement: new_user(),
    UserChange: {},
    Credentials: {"email": "ada@example.com", "password": "correct horse"},
    Page: {},
}
FIELDS = [(model, field) for model in RIGHT for field in model.model_fields]
NAMES = {"fname", "lname"}

COMBINING = ["\u0301", "\u0323", "\u0338", "\u0345", "\u05b0", "\u0651", "\u3099", "\u034f"]
COMPOSED = ["\u1f82", "\u1ed9", "\u212b", "\uac01", "\u00e9"]  # NFC, or what is made of it
JAMO = ["\u1100", "\u1161", "\u11a8", "\u115f"]
COMPATIBILITY = ["\ufdfa", "\ufb2c", "\U0001d160", "\u0958", "\uff0e", "\u3002", "\u00df", "\u1e9e", "\u0130"]
INVISIBLE = ["\u200d", "\u200c", "\u200b", "\u00ad", "\ufe0f", "\u202e", "\u2066", "\ufeff", "\U000e0001"]
RIGHT_TO_LEFT = ["\u05d0", "\u0627", "\u0661", "\u06f1"]
SPACES = [" ", "\u00a0", "\u3000", "\u2000", "\u2028", "\t", "\n", "\x85", "\x1f"]
BAD = ["\0", "\x1b", "\x7f", "\ud800", "\udfff", "\ufffe", "\U0010ffff"]
ADDRESS = [
    "a",
    "A",
    "1",
    ".",
    "-",
    "_",
    "@",
    '"',
    "\\",
    "<",
    ">",
    "[",
    "]",
    ":",
    "xn--",
    "xn--bcher-kva",
    "ada@example.com",
]
PIECES = [*COMBINING, *COMPOSED, *JAMO, *COMPATIBILITY, *INVISIBLE, *RIGHT_TO_LEFT, *SPACES, *BAD, *ADDRESS]

hostile = st.lists(st.sampled_from(PIECES) | st.characters(), max_size=30).map("".join)
# Around each limit, and far past it: few pieces, repeated.
repeated = st.builds(
    lambda pieces, count, end: (pieces * count)[: 64 * 1024] + end,
    hostile, st.sampled_from([1, 2, 8, 100, 101, 400, 10_000]), st.sampled_from(["", "@example.com", ".com", "\0"]),
)  # fmt: skip
decomposed = hostile.map(lambda text: unicodedata.normalize("NFD", text))
texts = hostile | repeated | decomposed | hostile.map(lambda text: f"{text}@{text}.com")

LONG = [
    "a" + "\u0301\u0323" * 16_000, "\u0591\u05a0" * 16_000, "\U0001d160" * 16_000, "\ufb2c" * 21_000, "x" * 64_000,
    " " * 32_000 + "\u0301\u0323" * 8_000, "\u1100\u1161\u11a8" * 7_000, '"' + "\\x" * 32_000 + '"@example.com',
    "\u0301\u0323" * 16_000 + "@example.com", "a@" + "\u0301\u0323" * 16_000 + ".com", "a@" + "\u0661" * 32_000,
    "<" + "\u0338" * 32_000 + "@example.com", "<" * 64_000, "a@xn--" + "a" * 64_000 + ".com", "\u0301" * 401,
    "\u0301" * 255, "a@" + "\u0661" * 200 + ".com",
]  # fmt: skip


def validated(model: type[BaseModel], field: str, value: object) -> Any:
    return getattr(model.model_validate({**RIGHT[model], field: value}), field)


@settings(max_examples=1000, deadline=None, database=None)
@given(st.sampled_from(FIELDS), texts)
def test_a_text_is_refused_or_taken_and_what_is_taken_is_normal(where: tuple[type[BaseModel], str], text: str) -> None:
    model, field = where
    try:
        taken = validated(model, field, text)
    except ValidationError as exc:
        errors = exc.errors()
    else:
        errors = []
    # The words of other people's exceptions, which pydantic would take for an error's, may repeat the value.
    assert "value_error" not in {error["type"] for error in errors}
    if errors:
        return
    assert validated(model, field, taken) == taken
    if field in NAMES:
        assert 1 <= len(taken) <= 100
        assert taken == unicodedata.normalize("NFC", taken.strip())
        assert "Cc" not in map(unicodedata.category, taken)
    elif field == "password":
        assert taken == text
    elif field == "q":
        assert 1 <= len(taken) <= 100
        assert taken == unicodedata.normalize("NFC", text)
    elif field == "email":
        assert len(taken.encode()) <= 254 or (taken == text and model in {Credentials, Page})


@settings(max_examples=300, deadline=None, database=None)
@given(st.lists(st.integers(0, 2**63 + 1), max_size=102))
def test_one_to_a_hundred_ids_are_taken(ids: list[int]) -> None:
    text = ",".join(map(str, ids))
    right = 1 <= len(ids) <= 100 and all(1 <= each < 2**63 for each in ids)
    with nullcontext() if right else pytest.raises(ValidationError):
        assert validated(Page, "id", text) == text


@pytest.mark.parametrize(
    "text", ["", ",", "1,", ",1", "1,,2", "1, 2", "+1", "1.0", "0x1", "\u0661", "0", "01", "9" * 20, "1\n"]
)
def test_ids_are_plain_decimal_digits(text: str) -> None:
    with pytest.raises(ValidationError):
        validated(Page, "id", text)


@settings(max_examples=300, deadline=None, database=None)
@given(st.datetimes(timezones=st.timezones() | st.just(UTC)), st.sampled_from(["auto", "seconds", "milliseconds"]))
def test_a_time_with_an_offset_is_taken_in_utc(moment: datetime, precision: str) -> None:
    text = moment.isoformat(timespec=precision)
    try:
        taken = validated(Page, "updated_since", text)
    except ValidationError:  # an offset of seconds, or in UTC the year is not of four digits
        assert moment.utcoffset() not in {timedelta(0), timedelta(hours=1)} or not 1 < moment.year < 9999
    else:
        assert taken.endswith("Z")
        assert datetime.fromisoformat(taken) == datetime.fromisoformat(text)
        assert validated(Page, "updated_since", taken) == taken


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "1700000000", "2026-11-23", "2026-11-23T08:50:46", "2026-11-23T08:50Z", "2026-13-23T08:50:46Z",
        "2026-11-23T24:50:46Z", "2026-11-23T08:50:46+25:00", "2026-11-23T08:50:46+0100", "0000-01-01T00:00:00Z",
        "0001-01-01T00:00:00+01:00", "9999-12-31T23:59:59-01:00", "2026-11-23T08:50:46Z\n", "\uff12026-11-23T08:50:46Z",
        "2026-11-23T08:50:46.0000000001Z", "2026-W48-1T08:50:46Z", "infinity",
    ],
)  # fmt: skip
def test_what_is_no_rfc_3339_time_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="2026-11-23T08:50:46Z"):
        validated(Page, "updated_since", text)


def contract(text: str) -> str | None:
    """Return the name that the contract makes of `text`, whatever that costs."""
    name = unicodedata.normalize("NFC", text.strip())
    bad = any(unicodedata.category(character) in {"Cc", "Cs"} for character in text)
    return name if 1 <= len(name) <= 100 and not bad else None


@settings(max_examples=500, deadline=None, database=None)
@given(st.lists(st.sampled_from(PIECES[:-4]) | st.characters(), min_size=1, max_size=4), st.integers(1, 110))
def test_a_name_that_the_contract_takes_is_taken_however_it_is_composed(pieces: list[str], count: int) -> None:
    text = "".join(pieces) * count
    for form in (text, unicodedata.normalize("NFC", text), unicodedata.normalize("NFD", text)):
        try:
            taken = validated(UserChange, "fname", form)
        except ValidationError:
            taken = None
        assert taken == contract(form)


def test_no_character_is_longer_than_the_limit_before_normalisation_allows() -> None:
    characters = [chr(number) for number in range(sys.maxunicode + 1)]
    longest = max(len(unicodedata.normalize("NFD", character)) for character in characters)
    assert longest * models.MAX_NAME == models.MAX_RAW_NAME
    # What is trimmed before is trimmed after it.
    for character in characters:
        assert character.isspace() == unicodedata.normalize("NFC", character).isspace()


@pytest.mark.parametrize("character", ["\u1f82", "\u1ed9", "\uac01", "\u00e9"], ids=ascii)
@pytest.mark.parametrize("spaces", [0, 60_000])
def test_a_name_of_a_hundred_characters_is_taken_in_its_longest_form(character: str, spaces: int) -> None:
    longest = unicodedata.normalize("NFD", character * 100)
    assert validated(UserCreation, "fname", " " * spaces + longest) == character * 100


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  Ada  ", "Ada"),
        ("\N{NO-BREAK SPACE}Ada\N{IDEOGRAPHIC SPACE}", "Ada"),
        ("Ame\N{COMBINING ACUTE ACCENT}lie", "Amélie"),
        ("\N{ANGSTROM SIGN}sa", "\N{LATIN CAPITAL LETTER A WITH RING ABOVE}sa"),
        ("Mary  Ann", "Mary  Ann"),
        ('O\'Brien; DROP TABLE "user" --', 'O\'Brien; DROP TABLE "user" --'),
        ("<b>%s {0} \\n", "<b>%s {0} \\n"),
        ("李小龍", "李小龍"),
        ("محمد", "محمد"),
        ("👩‍👩‍👧", "👩‍👩‍👧"),
        ("null", "null"),
        ("A", "A"),
        ("x" * 100, "x" * 100),
        (f"   {'x' * 100}   ", "x" * 100),
        ("\N{PILE OF POO}" * 100, "\N{PILE OF POO}" * 100),
        ("e\N{COMBINING ACUTE ACCENT}" * 100, "é" * 100),
        ("\u03b1\u0313\u0300\u0345" * 100, "\u1f82" * 100),  # no character is made of more
        (f"{' ' * 30_000}Ada{' ' * 30_000}", "Ada"),
    ],
)
@pytest.mark.parametrize("model", [UserCreation, UserReplacement, UserChange])
def test_a_name_is_trimmed_and_composed_and_otherwise_kept(model: type[BaseModel], given: str, kept: str) -> None:
    for field in NAMES:
        assert validated(model, field, given) == kept


@pytest.mark.parametrize(("model", "field"), [(Credentials, "email"), (Credentials, "password"), (Page, "email")])
def test_a_text_of_an_older_version_is_taken_up_to_the_length_of_a_body(model: type[BaseModel], field: str) -> None:
    text = "\u0301\u0323" * 32_768
    assert validated(model, field, text) == text
    with pytest.raises(ValidationError, match="at most 65536 characters"):
        validated(model, field, text + "x")


@pytest.mark.parametrize(("model", "field"), FIELDS)
def test_nothing_too_long_is_normalised_or_parsed(
    monkeypatch: pytest.MonkeyPatch, model: type[BaseModel], field: str
) -> None:
    normalised: list[str] = []
    parsed: list[str] = []

    def noted(function: Callable[..., Any], texts: list[str], argument: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            texts.append(arguments[argument])
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(unicodedata, "normalize", noted(unicodedata.normalize, normalised, 1))
    monkeypatch.setattr(models, "validate_email", noted(email_validator.validate_email, parsed, 0))
    short = "e\u0301va@example.com"
    for text in [*LONG, short]:
        with suppress(ValidationError):
            validated(model, field, text)
    assert max(map(len, normalised), default=0) <= 400
    assert max((len(text.encode()) for text in parsed), default=0) <= 254
    assert (short in normalised) == (field in NAMES | {"email", "q"})
    assert (short in parsed) == (field == "email")


LOCAL = st.text("aB19._+-'", max_size=70) | st.sampled_from(["Postmaster", "PostMaster1", "ABUSE", "Root"])
DOMAIN = st.text("aB9.-_xn", max_size=20).map("{}.Com".format) | st.sampled_from(["localhost", "1.2.3.4", "b" * 64])


@given(LOCAL, st.sampled_from(["", "@", "@@"]), DOMAIN)
@settings(max_examples=1000)
def test_an_email_of_the_plain_form_is_as_the_library_has_it(local: str, at: str, domain: str) -> None:
    email = f"{local}{at}{domain}"
    try:
        expected = email_validator.validate_email(email, check_deliverability=False, test_environment=True).normalized
    except email_validator.EmailNotValidError:
        expected = None
    try:
        found = TypeAdapter(models.Email).validate_python(email)
    except ValidationError:
        found = None
    assert found == expected
