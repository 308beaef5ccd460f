"""The locks pin with hashes all that the requirements need. `make lock` makes them."""

import re

import pytest

from tests.support.process import CHECKOUT

OURS = "requirements.txt"
EMBEDDED = "service/extras/requirements.txt"  # apart, as some platforms have none
NEEDED = {
    "runtime": [OURS],  # without what stands under "To develop"
    "development": [OURS],
    "embedded": [EMBEDDED],
    "tests": [OURS, EMBEDDED, "tests/requirements.txt"],
    "system": [OURS, EMBEDDED, "tests/requirements.txt", "tests/system/requirements.txt"],
    "bench": [OURS, EMBEDDED, "tests/requirements.txt", "tests/bench/requirements.txt"],
    "patroni": ["tests/ha/requirements.txt"],
    "tools": [".ci/requirements.txt"],
}
PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[.*?\])?==([^\s;]+)", re.MULTILINE)


def pins(text: str) -> dict[str, str]:
    """Return the version of each package, by its normalised name."""
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in PIN.findall(text)}


def lock(name: str) -> str:
    return (CHECKOUT / ".locks" / f"{name}.txt").read_text()


@pytest.mark.parametrize("name", NEEDED)
def test_a_lock_has_what_its_requirements_name(name: str) -> None:
    texts = [(CHECKOUT / path).read_text() for path in NEEDED[name]]
    if name == "runtime":
        texts = [text.partition("# To develop")[0] for text in texts]
    named = pins("\n".join(texts))
    assert named
    assert named.items() <= pins(lock(name)).items(), "run make lock"


@pytest.mark.parametrize("name", NEEDED)
def test_every_package_of_a_lock_has_its_hashes(name: str) -> None:
    entries = re.split(r"\n(?=\S)", re.sub(r"^#.*\n", "", lock(name), flags=re.MULTILINE).strip())
    assert [entry for entry in entries if not PIN.match(entry) or "--hash=sha256:" not in entry] == []


def test_what_serves_has_nothing_that_only_develops() -> None:
    text = (CHECKOUT / OURS).read_text().partition("# To develop")[2] + (CHECKOUT / EMBEDDED).read_text()
    developing = pins(text)
    assert pins((CHECKOUT / EMBEDDED).read_text()).keys().isdisjoint(pins(lock("development")))
    assert developing.keys().isdisjoint(pins(lock("runtime")))
    assert "pytest" in developing


@pytest.mark.parametrize("name", ["development", "tests", "system", "bench"])
def test_a_package_has_the_same_version_in_every_lock(name: str) -> None:
    assert pins(lock("runtime")).items() <= pins(lock(name)).items()
