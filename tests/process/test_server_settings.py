"""What the server, the database and the role are set to: time zones, and collations that have changed."""

import re
import sys
from datetime import UTC, datetime, timedelta
from subprocess import run

import pytest
from psycopg import sql

from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase
from tests.support.process import CHECKOUT, Service, environment
from tests.support.users import create

pytestmark = pytest.mark.usefixtures("forked")

# A collation whose version is known without ICU, and without a locale of libc.
BUILTIN = "TEMPLATE template0 LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8' LOCALE 'C'"


def test_times_are_utc_whatever_time_zone_the_session_has(cluster: Cluster) -> None:
    database = cluster.create_database()
    with database.as_superuser() as conn:
        conn.execute(f"ALTER DATABASE {database.name} SET timezone = 'Asia/Kolkata'")
    address = f"{database.name}:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{cluster.port}/{database.name}"
    url = f"postgresql://{address}?options=-c%20TimeZone%3DAsia/Tokyo%20-c%20DateStyle%3DGerman"
    with Service({"DATABASE_URL": url, "PGTZ": "Asia/Tokyo"}) as service:
        user = create(service.client)
        path = f"/users/{user['id']}"
        changed = service.client.patch(path, json={"fname": "Grace"}).json()
        credentials = {"email": user["email"], "password": "correct horse"}
        answers = [
            user,
            changed,
            service.client.get(path).json(),
            *service.client.get("/users").json(),
            *service.client.get("/users", params={"email": user["email"]}).json(),
            service.client.post("/users/authenticate", json=credentials).json(),
        ]
    for answer in answers:
        for name in ("created_at", "updated_at"):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", answer[name])
            assert abs(datetime.fromisoformat(answer[name]) - datetime.now(UTC)) < timedelta(minutes=1)


@pytest.fixture
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database(BUILTIN)


def check(database: TestDatabase) -> str:
    """Return what `python -m service check` prints."""
    done = run([sys.executable, "-m", "service", "check"], cwd=CHECKOUT, env=environment(database.environment),
               capture_output=True, text=True, check=True, timeout=60)  # fmt: skip
    return done.stdout


def has_mismatch(service: Service) -> bool:
    return "\npostgresql_collation_version_mismatch 1.0\n" in service.client.get("/metrics").text


def test_a_collation_that_has_changed_is_reported(database: TestDatabase) -> None:
    assert "the order of text" not in check(database)
    with database.as_superuser() as conn:
        conn.execute("UPDATE pg_database SET datcollversion = '0' WHERE datname = current_database()")
    said = f"the order of text: the default of {database.name}. "
    assert said in check(database)
    with Service(database.environment) as service:
        assert said in service.log
        until(lambda: has_mismatch(service), "/metrics reports it")
    with database.as_superuser() as conn:
        conn.execute(sql.SQL("ALTER DATABASE {} REFRESH COLLATION VERSION").format(sql.Identifier(database.name)))
    assert "the order of text" not in check(database)
    with Service(database.environment) as service:
        until(lambda: "postgresql_collation_version_mismatch 0.0" in service.client.get("/metrics").text, "it is over")
