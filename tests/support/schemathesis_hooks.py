"""Loaded by schemathesis, in test_openapi.py."""

import re
from secrets import token_hex
from typing import Any

import schemathesis

KEY = re.compile("[!#-~][!-~]{0,200}")


@schemathesis.hook
def map_case(_context: Any, case: Any) -> Any:
    """Write whole numbers as 1, not as 1.0: JSON Schema takes both for an integer, the contract takes digits."""
    case.path_parameters = _whole(case.path_parameters)
    case.query = _whole(case.query)
    case.body = _whole(case.body)
    return case


@schemathesis.hook
def before_call(_context: Any, case: Any, _kwargs: Any) -> None:
    """Send each Idempotency-Key once, as it belongs to one request."""
    if KEY.fullmatch((case.headers or {}).get("idempotency-key", "")):
        case.headers["idempotency-key"] += token_hex(8)
    for name in ("if-match", "if-none-match"):  # schemathesis sends 0 as if it fitted the pattern
        if (case.headers or {}).get(name) == "0":
            del case.headers[name]


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value
