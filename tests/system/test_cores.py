"""A worker keeps to a core of its own, as long as it is its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service

pytestmark = pytest.mark.alone


def core_of(service: Service) -> int:
    (core,) = os.sched_getaffinity(service.process.pid)
    return core


@contextmanager
def used_by_others(core: int) -> Iterator[None]:
    """Have a program that uses all of a core while the block runs."""
    program = subprocess.Popen(
        [sys.executable, "-c", f"import os\nos.sched_setaffinity(0, {{{core}}})\nwhile True: pass"]
    )
    try:
        yield
    finally:
        program.kill()
        program.wait()


def test_a_worker_moves_away_from_a_core_that_others_use(database: TestDatabase) -> None:
    with Service(database.environment) as service:
        first = core_of(service)
        with used_by_others(first):
            until(lambda: core_of(service) != first, "the worker has moved")
        assert f"moves from core {first} to core {core_of(service)}" in service.log
        assert service.client.get("/users").status_code == 200
