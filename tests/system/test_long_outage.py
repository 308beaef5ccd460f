from collections.abc import Callable

from tests.support.outage import survive
from tests.support.postgres import TestDatabase
from tests.support.process import Service


def test_an_outage_of_seventy_seconds_ends_within_a_second_of_the_return(
    service: Service, database: TestDatabase, tell: Callable[[str], None]
) -> None:
    """By then a delay that doubles at each attempt would be 64 s."""
    survive(70, service, database, tell)
