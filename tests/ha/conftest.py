"""What needs root, Debian's packages and Patroni: a cluster of three PostgreSQL servers."""

from collections.abc import Iterator

import pytest

from tests.ha import rig
from tests.ha.report import RESULTS, table
from tests.support import namespaces


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rounds", type=int, default=1, help="how often each fault is made")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[RESULTS] = []
    if lack := rig.missing():
        raise pytest.UsageError(lack)
    try:
        namespaces.enter()
    except OSError as exc:
        raise pytest.UsageError(exc.strerror) from exc


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "round_number" in metafunc.fixturenames:
        metafunc.parametrize("round_number", range(1, metafunc.config.getoption("--rounds") + 1))


@pytest.fixture(scope="module")
def cluster() -> Iterator[rig.Rig]:
    with rig.Rig() as found:
        yield found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if results := config.stash[RESULTS]:
        terminalreporter.section(" · ".join(rig.FORMS))
        terminalreporter.write_line(table(results))
