"""What is counted before it is looked at."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.exceptions import RequestValidationError

from service.web.bodies import check_query, check_values

MANY = {f"x{number}": number for number in range(101)}


def short(value: object) -> str:
    return ascii(value)[:20]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    "body", [None, 1, "x" * 64_000, [], {}, [0] * 100, dict.fromkeys("abcd", [0] * 24), nested(100)], ids=short
)
def test_a_body_of_few_values_is_left_to_its_model(body: Any) -> None:
    check_values(body)


@pytest.mark.parametrize(
    "query",
    [b"", b"limit=1", b"x" * 8192, b"&" * 31, b"&".join([b"a=1"] * 32), b"email=" + b"%F0%9F%98%80" * 676, b"\xff"],
    ids=short,
)
def test_a_query_of_few_parameters_is_left_to_its_model(query: bytes) -> None:
    check_query(query)


@pytest.mark.parametrize(
    ("check", "given", "part", "kind"),
    [
        (check_values, MANY, "body", "too_many_values"),
        (check_values, [MANY], "body", "too_many_values"),
        (check_values, {"x": {"y": MANY}}, "body", "too_many_values"),
        (check_values, [0] * 30_000, "body", "too_many_values"),
        (check_values, dict.fromkeys("abcd", [0] * 25), "body", "too_many_values"),
        (check_values, nested(101), "body", "too_many_values"),
        (check_query, b"x" * 8193, "query", "query_too_long"),
        (check_query, b"email=" + b"x" * 60_000, "query", "query_too_long"),
        (check_query, b"&".join([b"a=1"] * 33), "query", "too_many_parameters"),
        (check_query, b"&".join(b"%x" % number for number in range(1000)), "query", "too_many_parameters"),
        (check_query, b"&" * 8192, "query", "too_many_parameters"),
    ],
    ids=short,
)
def test_more_is_one_error_that_repeats_nothing(check: Callable[[Any], None], given: Any, part: str, kind: str) -> None:
    with pytest.raises(RequestValidationError) as refused:
        check(given)
    (error,) = refused.value.errors()
    assert (error["loc"], error["type"]) == ((part,), kind)
    assert set(error) == {"loc", "msg", "type"}
    assert json.dumps(error).isascii()
    assert len(error["msg"]) < 60
