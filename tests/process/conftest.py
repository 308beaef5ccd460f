"""A start without imports, for the tests of what comes after it."""

from collections.abc import Iterator

import pytest

from tests.support.fork_server import ForkServer
from tests.support.process import Service


@pytest.fixture(scope="module")
def forked(fork_server: ForkServer) -> Iterator[None]:
    """Fork the services of this module, and what `run_command` runs."""
    Service.fork_server = fork_server
    yield
    Service.fork_server = None
