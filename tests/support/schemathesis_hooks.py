"""Loaded by schemathesis, in test_openapi.py."""

from typing import Any

import schemathesis


@schemathesis.hook
def map_case(_context: Any, case: Any) -> Any:
    """Write whole numbers as 1, not as 1.0: JSON Schema takes both for an integer, the contract takes digits."""
    case.path_parameters = _whole(case.path_parameters)
    case.query = _whole(case.query)
    case.body = _whole(case.body)
    return case


def _whole(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {name: _whole(item) for name, item in value.items()}
    return value
