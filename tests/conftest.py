"""The real things every test stands on: one PostgreSQL for the run, one database and one service for each module."""

import os
import sys
from collections.abc import Callable, Iterator, Sequence

import httpx
import pytest

from tests.support.fork_server import ForkServer
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service

# The API without service/extras/http/.
STOCK_UVICORN = (sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", "0")

# Without bytecode, each of the hundreds of processes that a run starts would compile the sources again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# No test uses TLS. Otherwise every client of httpx reads all certificates of the machine: 35 ms of a core.
os.environ["SSL_CERT_DIR"] = "/nowhere"
os.environ.pop("SSL_CERT_FILE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--server", choices=["service", "uvicorn"], default="service",
        help="what serves the shared `service`: python -m service serve, or stock uvicorn",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--server") == "uvicorn":
        protocol = [item for item in items if item.get_closest_marker("protocol")]
        config.hook.pytest_deselected(items=protocol)
        items[:] = [item for item in items if item not in protocol]


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """PostgreSQL 18 from the wheel, reached over TCP with a password."""
    with Cluster(installed()["18"]) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    """An empty database."""
    return cluster.create_database()


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """A process that forks services; the folders in which no start is tested use it."""
    with ForkServer() as fork_server:
        yield fork_server


@pytest.fixture(scope="module")
def forked(fork_server: ForkServer) -> Iterator[None]:
    """Fork the services of this module, and what `run_command` runs: their start is not what is tested."""
    Service.fork_server = fork_server
    yield
    Service.fork_server = None


@pytest.fixture(scope="module")
def cheap_hashes(request: pytest.FixtureRequest, fork_server: ForkServer, forked: None) -> Iterator[None]:  # noqa: ARG001 - only forked ones have it
    """Have the services of this module hash passwords at little cost, unless it is marked `real_hashes`."""
    fork_server.cheap_hashes = not request.node.get_closest_marker("real_hashes")
    yield
    fork_server.cheap_hashes = False


@pytest.fixture(scope="session")
def argv(request: pytest.FixtureRequest) -> Sequence[str]:
    """The command line of the shared service; empty for `python -m service serve`."""
    return STOCK_UVICORN if request.config.getoption("--server") == "uvicorn" else ()


@pytest.fixture(scope="module")
def service(database: TestDatabase, argv: Sequence[str]) -> Iterator[Service]:
    """The service over that database."""
    with Service(database.environment, argv=argv) as service:
        yield service


@pytest.fixture
def client(service: Service) -> httpx.Client:
    """A client of that service."""
    return service.client


@pytest.fixture
def record_figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Record a figure, which is printed at the end of the run."""
    return lambda figure: record_property("figure", figure)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    figures = [
        figure
        for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed")
        for _, figure in report.user_properties
    ]
    if figures:
        terminalreporter.section("figures")
        for figure in sorted(set(figures)):
            terminalreporter.write_line(str(figure))
