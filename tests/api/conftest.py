"""Services that are forked, as no start is tested here."""

from collections.abc import Iterator

import pytest

from tests.support.fork_server import ForkServer
from tests.support.process import Service


@pytest.fixture(scope="package", autouse=True)
def _forked(fork_server: ForkServer) -> Iterator[None]:
    Service.fork_server = fork_server
    yield
    Service.fork_server = None
