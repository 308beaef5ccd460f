"""Settings that stop the start, and where they are read."""

import socket
from collections.abc import Iterator
from subprocess import CompletedProcess

import pytest

from tests.support.checkout import Checkout, copied
from tests.unit.test_settings import ROUNDS

NO_SERVER = {"DATABASE_HOSTNAME": "/nowhere", "DATABASE_NAME": "nobody", "DATABASE_USERNAME": "nobody"}


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    with copied() as checkout:
        yield checkout


def stops(ended: CompletedProcess[str], lines: int) -> str:
    """Assert that a start was stopped with so many lines, and return them."""
    assert "Traceback" not in ended.stderr, ended.stderr
    assert (ended.returncode, ended.stdout) == (2, ""), ended
    assert ended.stderr.count("\n") == lines, ended.stderr
    return ended.stderr


@pytest.mark.parametrize("command", ["check", "serve"])
def test_all_wrong_values_stop_the_start_at_once(checkout: Checkout, command: str) -> None:
    stops(checkout.run(command, ROUNDS[0]), lines=len(ROUNDS[0]))


def test_a_port_in_use_stops_the_start(checkout: Checkout) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        line = stops(checkout.run("serve", NO_SERVER | {"PORT": port}), lines=1)
    assert f"PORT={port}" in line
    assert "in use" in line


def test_the_file_of_the_working_folder_is_read(checkout: Checkout) -> None:
    file = checkout.folder / ".env"
    file.write_text("WORKERS=3\nQUEUE_LENGTH=7\n")
    try:
        shown = checkout.run("check", NO_SERVER | {"WORKERS": "2"}).stdout.splitlines()
    finally:
        file.unlink()
    assert {"WORKERS=2", "QUEUE_LENGTH=7"} <= set(shown)


def test_a_near_miss_is_reported_before_the_mistake_that_it_causes(checkout: Checkout) -> None:
    given = {"DATABASE_HOST": "h", "DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}
    warning, mistake = checkout.run("check", given).stderr.splitlines()
    assert warning == "DATABASE_HOST is no setting and has no effect: did you mean DATABASE_HOSTNAME?"
    assert mistake.startswith("DATABASE_HOSTNAME is missing")
