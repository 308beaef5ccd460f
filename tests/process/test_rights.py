"""A role with few rights: the start names each missing GRANT, and what it names is enough."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.support.checkout import Checkout, copied
from tests.support.fork_server import ForkServer
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.users import create


@pytest.fixture(scope="module")
def checkout(fork_server: ForkServer) -> Iterator[Checkout]:
    """A folder of its own; its commands are forked, its services start as users start them."""
    with copied() as checkout:
        yield replace(checkout, fork_server=fork_server)


@pytest.fixture
def database(checkout: Checkout, cluster: Cluster) -> TestDatabase:
    """With the schema, and with a role beside the owner."""
    database = cluster.create_database()
    assert checkout.run("schema", database.environment).returncode == 0
    with database.as_superuser() as conn:
        conn.execute(f"CREATE ROLE guest_{database.name} LOGIN PASSWORD '{PASSWORD}'")
    return database


def as_guest(database: TestDatabase) -> dict[str, str]:
    return {**database.environment, "DATABASE_USERNAME": f"guest_{database.name}"}


@pytest.mark.parametrize("had", ["", "SELECT", "SELECT, INSERT, UPDATE, DELETE"])
def test_each_missing_right_is_named_as_a_grant_that_mends_it(
    had: str, checkout: Checkout, database: TestDatabase
) -> None:
    with database.as_superuser() as conn:
        if had:
            conn.execute(f'GRANT {had} ON public."user" TO guest_{database.name}')
        ended = checkout.run("serve", as_guest(database))
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        grants = re.findall(r"GRANT [^;\n]+", ended.stderr)
        assert any("SEQUENCE" in grant for grant in grants), ended.stderr
        for grant in grants:
            conn.execute(grant)
    with checkout.start(as_guest(database)) as service:
        user = create(service.client)
        body = {"email": user["email"], "password": "wrong horse"}
        assert service.client.post("/users/authenticate", json=body).status_code == 401


@pytest.mark.parametrize("table", ["failed_login", "idempotency_key"])
def test_other_roles_may_not_touch_what_the_service_keeps(database: TestDatabase, table: str) -> None:
    with database.as_superuser() as conn:
        may = f"SELECT has_any_column_privilege('guest_{database.name}', 'public.{table}', 'SELECT, UPDATE')"
        assert conn.execute(may).fetchone() == (False,)


def test_sessions_of_other_roles_are_counted(checkout: Checkout, database: TestDatabase) -> None:
    used = re.compile(r"(\d+) in use by others now")
    before = used.search(checkout.run("check", database.environment).stdout)
    with database.as_superuser() as _, database.as_superuser() as _, database.connect() as _:
        after = used.search(checkout.run("check", database.environment).stdout)
    assert before
    assert after
    assert int(after[1]) - int(before[1]) == 3
