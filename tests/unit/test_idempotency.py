"""What an Idempotency-Key may be, and what makes two requests the same."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.telemetry.record import RECORD, Record
from service.web import idempotency
from service.web.idempotency import WriteHeaders

VISIBLE = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=255)


@given(VISIBLE)
def test_a_key_is_the_same_bare_and_in_quotes(key: str) -> None:
    escaped = key.replace("\\", "\\\\").replace('"', '\\"')
    assert WriteHeaders(idempotency_key=f'"{escaped}"').idempotency_key == key
    if not key.startswith('"'):
        assert WriteHeaders(idempotency_key=key).idempotency_key == key


@pytest.mark.parametrize(
    "key",
    [
        "",
        " ",
        '""',
        '"',
        '"a',
        "a b",
        '"a b"',
        '"a"b',
        "k" * 256,
        f'"{"k" * 256}"',
        "\x7f",
        "ä",
        "a\tb",
        '"\\a"',
        "a, b",
    ],
)
def test_a_malformed_key_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="one key of 1 to 255 visible ASCII characters"):
        WriteHeaders(idempotency_key=key)


def hashes(monkeypatch: pytest.MonkeyPatch, key: str = "key", caller: str = "", **request: Any) -> dict[str, Any]:
    """Return the hashes of a request, which differs from POST /users {} in what is given."""
    content = {"method": "POST", "path": "/users", "query": "", "body": {}} | request
    monkeypatch.setattr(idempotency, "request_content", lambda: list(content.values()))
    RECORD.set(Record("-", "POST", "/users", caller=caller))
    return idempotency._key_parameters(key, 200)  # noqa: SLF001


def test_the_order_of_names_and_white_space_make_no_other_request(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = {"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"d": 3, "c": 2}, "a": 1}
    assert hashes(monkeypatch, body=one) == hashes(monkeypatch, body=other)


@pytest.mark.parametrize(
    "request_",
    [{"method": "PUT"}, {"path": "/users/1"}, {"query": "a=1"}, {"body": None}, {"body": {"a": 1}}, {"body": [{}]}],
)
def test_another_method_path_query_or_body_is_another_request(
    monkeypatch: pytest.MonkeyPatch, request_: dict[str, Any]
) -> None:
    one, other = hashes(monkeypatch), hashes(monkeypatch, **request_)
    assert one["key_hash"] == other["key_hash"]
    assert one["fingerprint"] != other["fingerprint"]


def test_a_key_belongs_to_the_caller_however_the_two_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", "c")]
    assert len({hashes(monkeypatch, key, caller)["key_hash"] for caller, key in pairs}) == len(pairs)


def test_the_fingerprint_cannot_be_made_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"password": "correct horse"}
    found = {hashes(monkeypatch, key, body=body)["fingerprint"] for key in ("key", "other key")}
    assert len(found) == 2, "so a dump, which has no key, does not let anybody try passwords"
