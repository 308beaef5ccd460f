from collections.abc import Callable

import pytest

from tests.support.outage import survive
from tests.support.postgres import TestDatabase
from tests.support.process import Service


@pytest.mark.parametrize("seconds", [20, 70])
def test_a_long_outage_ends_within_a_second_of_the_return(
    seconds: int, service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    """After 70 s a delay that doubles at each attempt would be 64 s."""
    survive(seconds, service, database, record_figure)
