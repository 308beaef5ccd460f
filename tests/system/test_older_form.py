"""The upgrade of a table of the older form, on every PostgreSQL that can be had but the one of `make test`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.test_older_form import *  # noqa: F403 - its tests, which find the cluster below
from tests.support.postgres import Cluster, installed

OTHERS = {version: programs for version, programs in installed().items() if version != "18"}


@pytest.fixture(scope="module", params=OTHERS.items(), ids=lambda item: f"PostgreSQL {item[0]}")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    programs: Path = request.param[1]
    with Cluster(programs) as cluster:
        yield cluster
