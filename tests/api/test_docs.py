import json
import re
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.problems import MEMBERS
from tests.support.process import CHECKOUT

README = (CHECKOUT / "README.md").read_text()

OPERATIONS = {
    ("/", "get"): "root",
    ("/livez", "get"): "livez",
    ("/readyz", "get"): "readyz",
    ("/users", "get"): "listUsers",
    ("/users", "post"): "createUser",
    ("/users/{user_id}", "get"): "readUser",
    ("/users/{user_id}", "put"): "replaceUser",
    ("/users/{user_id}", "patch"): "changeUser",
    ("/users/{user_id}", "delete"): "deleteUser",
    ("/users/authenticate", "post"): "authenticateUser",
}
ALWAYS = {"401", "403", "422", "500", "503", "504"}
WITH_BODY = ALWAYS | {"400", "408", "413", "415"}
ERRORS = {
    "readyz": {"503"},
    "listUsers": ALWAYS,
    "createUser": WITH_BODY | {"409"},
    "readUser": ALWAYS | {"404", "412"},
    "replaceUser": WITH_BODY | {"404", "409", "412"},
    "changeUser": WITH_BODY | {"404", "409", "412"},
    "deleteUser": ALWAYS | {"404", "409", "412"},
    "authenticateUser": WITH_BODY | {"429"},
}


@pytest.fixture
def openapi(client: httpx.Client) -> dict[str, Any]:
    document: dict[str, Any] = client.get("/openapi.json").json()
    return document


def operation(openapi: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        operation
        for path in openapi["paths"].values()
        for operation in path.values()
        if operation["operationId"] == name
    )
    return found


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_needs_nothing_from_another_host(client: httpx.Client, path: str) -> None:
    page = client.get(path)
    assert page.headers["Content-Type"].startswith("text/html")
    links = re.findall(r"(?:src|href|url)[=:]\s*[\"']([^\"']*)", page.text)
    assert len(links) >= 3
    for link in links:
        assert urlsplit(link).netloc == "", link
        asset = client.get(link)
        assert asset.status_code == 200
        assert asset.content
    assert re.findall(r"https?://", page.text) == []
    assert path == "/redoc" or '"validatorUrl": null' in page.text  # Swagger UI's badge is of another host
    for script in re.findall(r'<script src="(.*?)"', page.text):
        assert "cdn.redoc.ly" not in client.get(script).text


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_a_page_may_run_no_script_but_its_own_and_stand_in_no_frame(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(each.strip().split(" ", 1) for each in headers["Content-Security-Policy"].split(";"))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in policy["script-src"]
    assert all(each.startswith(("'self'", "'sha256-")) for each in policy["script-src"].split())
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_without_keys_no_operation_declares_that_it_needs_one(openapi: dict[str, Any]) -> None:
    assert "security" not in str(openapi["paths"])
    assert "securitySchemes" not in openapi["components"]


@pytest.mark.parametrize(
    ("name", "kind", "begins"),
    [
        ("swagger-ui-bundle.js", "text/javascript", b"/*"),
        ("redoc.standalone.js", "text/javascript", b"/*"),
        ("swagger-ui.css", "text/css", b"."),
        ("favicon.png", "image/png", b"\x89PNG"),
    ],
)
def test_an_asset_is_what_its_name_says(client: httpx.Client, name: str, kind: str, begins: bytes) -> None:
    asset = client.get(f"/docs/assets/{name}")
    assert asset.headers["Content-Type"].startswith(kind)
    assert asset.content.startswith(begins)


@pytest.mark.parametrize("name", ["../__init__.py", "..%2f__init__.py", "%2fetc%2fpasswd", "favicon.png%00", "x"])
def test_nothing_but_the_assets_is_served(client: httpx.Client, name: str) -> None:
    assert client.get(f"/docs/assets/{name}").status_code == 404


def test_every_operation_has_a_name_of_its_own_that_stays(openapi: dict[str, Any]) -> None:
    found = {
        (path, method): operation["operationId"]
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    }
    assert found == OPERATIONS


@pytest.mark.parametrize(("name", "statuses"), ERRORS.items())
def test_every_error_of_an_operation_is_documented_with_an_example(
    openapi: dict[str, Any], name: str, statuses: set[str]
) -> None:
    responses = {status: answer for status, answer in operation(openapi, name)["responses"].items() if status >= "400"}
    assert set(responses) == statuses
    for status, answer in responses.items():
        content = answer["content"]["application/problem+json"]
        assert content["schema"] == {"$ref": "#/components/schemas/Problem"}
        assert content["examples"]
        for title, example in content["examples"].items():
            problem = example["value"]
            assert (problem["status"], problem["title"]) == (int(status), title)
            assert set(problem) - {"errors", "failed"} == MEMBERS


@pytest.mark.parametrize("name", ["createUser", "replaceUser", "authenticateUser"])
def test_every_field_of_a_body_has_an_example(openapi: dict[str, Any], name: str) -> None:
    reference = operation(openapi, name)["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    schema = openapi["components"]["schemas"][reference.rpartition("/")[2]]
    assert all(field.get("examples") for field in schema["properties"].values())


def test_the_example_of_a_new_user_is_the_first_of_the_readme(openapi: dict[str, Any]) -> None:
    (first,) = re.findall(r"^\$ curl --json '(.*?)' localhost:8000/users$", README, re.MULTILINE)[:1]
    for name, method in (("UserCreation", json.loads(first)), ("User", {"id": 1, "fname": "Ada", "lname": "Lovelace"})):
        fields = openapi["components"]["schemas"][name]["properties"]
        assert {field: fields[field]["examples"][0] for field in method} == method


def test_every_integer_is_declared_with_64_bits(openapi: dict[str, Any]) -> None:
    def formats(node: Any) -> list[str | None]:
        if isinstance(node, dict):
            own = [node.get("format")] if node.get("type") == "integer" else []
            return own + [each for child in node.values() for each in formats(child)]
        return [each for child in node for each in formats(child)] if isinstance(node, list) else []

    assert set(formats(openapi)) == {"int64"}


def test_no_schema_is_named_as_the_constructor_of_another_in_go(openapi: dict[str, Any]) -> None:
    names = set(openapi["components"]["schemas"])
    assert names.isdisjoint({f"New{name}" for name in names})


def test_every_pattern_is_known_to_all_languages(openapi: dict[str, Any]) -> None:
    patterns = re.findall(r'"pattern": "(.*?)"', json.dumps(openapi))
    assert len(patterns) > 10
    assert [pattern for pattern in patterns if r"\\u" in pattern] == []  # Go knows \x00 only


@pytest.mark.parametrize(
    ("name", "status", "header", "kind"),
    [
        ("createUser", "201", "Location", "string"),
        ("listUsers", "200", "Link", "string"),
        ("listUsers", "503", "Retry-After", "integer"),
        ("readyz", "503", "Retry-After", None),
    ],
)
def test_the_headers_of_an_answer_are_declared(
    openapi: dict[str, Any], name: str, status: str, header: str, kind: str | None
) -> None:
    declared = operation(openapi, name)["responses"][status].get("headers", {})
    assert declared.get(header, {}).get("schema", {}).get("type") == kind


def test_the_bounds_of_the_cursor_and_the_page_are_documented(openapi: dict[str, Any]) -> None:
    parameters = {parameter["name"]: parameter["schema"] for parameter in operation(openapi, "listUsers")["parameters"]}
    assert (parameters["limit"]["minimum"], parameters["limit"]["maximum"], parameters["limit"]["default"]) == (
        1,
        1000,
        100,
    )
    assert (parameters["after"]["minimum"], parameters["after"]["maximum"]) == (1, 2**63 - 1)


@pytest.mark.parametrize("name", ["readUser", "replaceUser", "changeUser", "deleteUser"])
def test_the_bounds_of_an_id_are_documented(openapi: dict[str, Any], name: str) -> None:
    (parameter,) = [each for each in operation(openapi, name)["parameters"] if each["in"] == "path"]
    assert (parameter["schema"]["minimum"], parameter["schema"]["maximum"]) == (1, 2**63 - 1)


def test_the_headers_of_conditional_and_repeated_requests_are_documented(openapi: dict[str, Any]) -> None:
    sent = {
        name: {each["name"] for each in operation(openapi, name)["parameters"] if each["in"] == "header"}
        for name in ("createUser", "readUser", "replaceUser", "changeUser", "deleteUser")
    }
    changes = {"if-match", "if-none-match", "idempotency-key"}
    assert sent == {
        "createUser": {"idempotency-key"}, "readUser": {"if-match", "if-none-match"},
        "replaceUser": changes, "changeUser": changes, "deleteUser": changes,
    }  # fmt: skip
    responses = operation(openapi, "changeUser")["responses"]
    assert responses["200"]["headers"].keys() == {"ETag", "Idempotency-Replayed"}
    assert responses["412"]["headers"].keys() == {"ETag"}
    assert operation(openapi, "readUser")["responses"]["304"]["headers"].keys() == {"ETag"}


def test_a_password_is_in_no_documented_answer(openapi: dict[str, Any]) -> None:
    assert set(openapi["components"]["schemas"]["User"]["properties"]) == {
        "id", "fname", "lname", "email", "created_at", "updated_at",
    }  # fmt: skip
