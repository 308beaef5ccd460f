"""What depends on PostgreSQL's version, on every version that can be had but the one of `make test`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.process.test_client_programs import checkout, test_a_backup_is_put_into_a_new_database  # noqa: F401
from tests.process.test_older_form import *  # noqa: F403
from tests.process.test_references import *  # noqa: F403
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service

OTHERS = {version: programs for version, programs in installed().items() if version != "18"}


@pytest.fixture(scope="module", params=OTHERS.items(), ids=lambda item: f"PostgreSQL {item[0]}")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    programs: Path = request.param[1]
    with Cluster(programs) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


@pytest.fixture(scope="module")
def service(database: TestDatabase) -> Iterator[Service]:
    with Service(database.environment) as service:
        yield service
