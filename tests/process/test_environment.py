"""How to connect is what the settings say: not libpq's environment, and not what else stands in a URL."""

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.checkout import Checkout, copied
from tests.support.postgres import PASSWORD, TestDatabase

# Each would break a connection, or change what comes over it.
LIBPQ = {
    "PGHOST": "db.invalid", "PGHOSTADDR": "192.0.2.1", "PGPORT": "1", "PGDATABASE": "missing", "PGUSER": "nobody",
    "PGPASSWORD": "wrong", "PGPASSFILE": "/nowhere", "PGSERVICE": "missing", "PGSERVICEFILE": "/nowhere",
    "PGSYSCONFDIR": "/nowhere", "PGREQUIREAUTH": "none", "PGCHANNELBINDING": "require", "PGSSLMODE": "verify-full",
    "PGSSLNEGOTIATION": "direct", "PGSSLMINPROTOCOLVERSION": "TLSv9", "PGGSSENCMODE": "require", "PGREQUIREPEER": "x",
    "PGTARGETSESSIONATTRS": "standby", "PGLOADBALANCEHOSTS": "never", "PGCONNECT_TIMEOUT": "abc",
    "PGOPTIONS": "-c wrong", "PGTZ": "Nowhere/Land", "PGDATESTYLE": "wrong", "PGGEQO": "wrong",
    "PGCLIENTENCODING": "wrong", "PGAPPNAME": "other", "PGMINPROTOCOLVERSION": "9.9", "PGDATA": "/nowhere",
}  # fmt: skip


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    with copied() as checkout:
        yield checkout


@pytest.mark.parametrize("form", ["settings", "URL"])
def test_no_variable_of_libpq_changes_how_it_connects(form: str, checkout: Checkout, database: TestDatabase) -> None:
    settings = database.environment if form == "settings" else {"DATABASE_URL": url(database)}
    with checkout.start({**settings, **LIBPQ}) as service:
        assert service.client.get("/users").status_code == 200
        assert "ignored" in service.log
        assert all(name in service.log for name in LIBPQ)


def test_nor_the_embedded_postgresql(checkout: Checkout) -> None:
    with checkout.start(LIBPQ, command="run") as service:
        assert service.client.get("/users").status_code == 200


def test_a_url_as_providers_and_other_libraries_give_it_connects(checkout: Checkout, database: TestDatabase) -> None:
    parameters = "pgbouncer=true&schema=public&connection_limit=5&pool_timeout=20&sslaccept=strict&connect_timeout=9"
    scheme_and_driver = url(database).replace("postgresql://", "postgresql+psycopg2://")
    ended = checkout.run("check", {"DATABASE_URL": f'"{scheme_and_driver}?{parameters}&channel_binding=prefer"\n'})
    assert ended.returncode == 0, ended.stderr
    ignored = [line for line in ended.stderr.splitlines() if "ignored" in line]
    assert len(ignored) == 1
    assert all(name in ignored[0] for name in ("pgbouncer", "schema", "connection_limit", "pool_timeout", "sslaccept"))
    assert "channel_binding" not in ignored[0]
    assert "TLS: not in force" in ended.stdout


def url(database: TestDatabase) -> str:
    return f"postgresql://{database.name}:{quote(PASSWORD)}@127.0.0.1:{database.cluster.port}/{database.name}"
