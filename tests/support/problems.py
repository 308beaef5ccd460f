"""The one shape that every error has."""

from typing import Any

import httpx

from tests.support.raw_http import Answer

MEMBERS = {"type", "title", "status", "detail", "code"}

# Words of PostgreSQL, of its driver, of Python.
LEAKS = ("psycopg", "sqlstate", "fatal:", "detail:", "relation", "constraint", "select ", "traceback")


def is_problem(response: httpx.Response | Answer, status: int, code: str) -> dict[str, Any]:
    """Assert that `response` is a whole problem document with this status and code, and return the document."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["X-Request-ID"]
    assert response.text.endswith("}\n")
    problem: dict[str, Any] = response.json()
    assert set(problem) == MEMBERS | ({"errors"} if status == 422 else set())
    assert (problem["status"], problem["code"]) == (status, code)
    assert all(problem[name] for name in MEMBERS)
    assert status != 422 or problem["errors"]
    for error in problem.get("errors", []):
        assert set(error) == {"loc", "msg", "type"}
        assert all(isinstance(part, str | int) for part in error["loc"])
    assert ("Retry-After" in response.headers) == (status == 503)
    assert status != 503 or int(response.headers["Retry-After"]) >= 1
    assert not [leak for leak in LEAKS if leak in response.text.lower()]
    return problem
