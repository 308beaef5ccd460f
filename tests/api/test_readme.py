import os
import re
import subprocess

import pytest

from service.app import RESOURCES
from service.settings import Settings
from service.web.health import NOT_READY
from service.web.problems import CORS_REFUSED, HEAD_TOO_LARGE, MALFORMED_REQUEST, PROBLEMS, STOPPING
from tests.support.process import CHECKOUT, Service

README = (CHECKOUT / "README.md").read_text()
READMES = ["README.md", "service/README.md", "service/deploy/README.md", "tests/README.md", "tests/bench/README.md"]
TIME = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z")


def consoles() -> list[tuple[str, str]]:
    """Return every command of the README's consoles with the output shown under it."""
    found = []
    for console in re.findall(r"```console\n(.*?)```", README, re.DOTALL):
        for shown in re.split(r"^\$ ", console, flags=re.MULTILINE)[1:]:
            command, _, output = shown.partition("\n")
            found.append((command, output))
    return found


def test_every_curl_of_the_readme_answers_what_the_readme_shows(service: Service) -> None:
    curls = [(command, output) for command, output in consoles() if command.startswith("curl")]
    assert len(curls) > 10
    variables = {**os.environ, "KEY": "any"}  # curl 8.14 sends nothing with an empty one
    for command, shown in curls:
        real = command.replace("localhost:8000", service.url.removeprefix("http://"))
        done = subprocess.run(["bash", "-c", real], capture_output=True, text=True, check=False, env=variables)
        assert TIME.sub("TIME", done.stdout.replace("\r", "")) == TIME.sub("TIME", shown), command


def test_every_make_target_of_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b(?=`|\n| ARGS)", README)) <= targets


def test_the_readme_lists_every_setting_with_its_default_and_what_it_takes() -> None:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*) \|$", README, re.MULTILINE)
    expected = []
    for name, field in Settings.model_fields.items():
        default = (
            ""
            if field.default in (None, "")
            else f"`{field.default:{'g' if isinstance(field.default, float) else ''}}`"
        )
        expected.append((name.upper(), default, field.description))
    assert rows == expected


def test_the_readme_lists_every_code_of_an_error_with_its_status() -> None:
    problems = [
        *PROBLEMS.values(),
        *(problem for resource in RESOURCES for problem in resource.problems.values()),
        NOT_READY,
        CORS_REFUSED,
        MALFORMED_REQUEST,
        HEAD_TOO_LARGE,
        STOPPING,
    ]
    rows = re.findall(r"^\| `([a-z-]+)` \| (\d+) \|", README, re.MULTILINE)
    assert sorted(set(rows)) == sorted({(problem.code, str(problem.status)) for problem in problems})


@pytest.mark.parametrize("name", READMES)
def test_every_file_that_a_readme_links_to_exists(name: str) -> None:
    readme = CHECKOUT / name
    links = re.findall(r"\]\(([^)#]+)\)", readme.read_text())
    assert [link for link in links if not (readme.parent / link).exists()] == []


def test_every_test_that_a_readme_names_exists() -> None:
    text = "".join((CHECKOUT / name).read_text() for name in READMES)
    named = re.findall(r"`(test_\w+)`", text)
    files = [path.read_text() for path in (CHECKOUT / "tests").rglob("test_*.py")]
    assert len(named) > 40
    assert [name for name in named if not any(f"def {name}(" in text for text in files)] == []


def test_the_first_readme_is_short() -> None:
    prose = [line for line in README.splitlines() if not line.startswith("| `")]  # a code or a setting each
    assert len(prose) <= 145
