"""Services that are forked, as no start is tested here, and that hash passwords at little cost."""

from collections.abc import Iterator

import httpx
import pytest

from tests.support.process import Service
from tests.support.users import create


@pytest.fixture(scope="module", autouse=True)
def _forked(cheap_hashes: None) -> None:
    """Fork the services: no start is tested here."""


@pytest.fixture(scope="module")
def first_user(service: Service) -> None:
    """Create the user with the id 1."""
    create(service.client, id=1)


@pytest.fixture
def still_serves(client: httpx.Client) -> Iterator[None]:
    """Assert that the service answers after the test."""
    yield
    assert client.get("/users").status_code == 200
