"""A server that speaks German and TLS: what ends the start in English ends it there too."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.faults.conftest import SHORT
from tests.support.checkout import Checkout, copied
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase, installed
from tests.support.process import Service
from tests.support.sessions import terminate

GERMAN = "de_DE.UTF-8"


@pytest.fixture(scope="module")
def german() -> Iterator[Cluster]:
    """Debian's PostgreSQL, which has translations, with a locale that the machine need not have."""
    debian = next(programs for programs in installed().values() if programs.is_relative_to("/usr/lib/postgresql"))
    cluster = Cluster(debian, {"lc_messages": GERMAN, "ssl": "on"})
    cluster.create()
    _make_certificate(cluster.data)
    locales = cluster.folder / "locales"
    locales.mkdir(mode=0o755)
    subprocess.run(
        ["localedef", "-i", "de_DE", "-f", "UTF-8", "--no-archive", locales / GERMAN], check=True, capture_output=True
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOCPATH", str(locales))
        cluster.start()
    yield cluster
    cluster.remove()


def _make_certificate(folder: Path) -> None:
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-nodes", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-out", folder / "server.crt", "-keyout", folder / "server.key"],
        check=True, capture_output=True,
    )  # fmt: skip
    owner = folder.stat()
    for name, mode in (("server.crt", 0o644), ("server.key", 0o600)):
        os.chown(folder / name, owner.st_uid, owner.st_gid)
        (folder / name).chmod(mode)


@pytest.fixture(scope="module")
def database(german: Cluster) -> TestDatabase:
    database = german.create_database()
    with database.as_superuser() as conn:
        conn.execute(f"CREATE ROLE nologin_{database.name} PASSWORD '{PASSWORD}'")
        conn.execute(f"CREATE ROLE stranger_{database.name} LOGIN PASSWORD '{PASSWORD}'")
        conn.execute(f"REVOKE CONNECT ON DATABASE {database.name} FROM PUBLIC")
    return database


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    with copied() as checkout:
        yield checkout


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"DATABASE_PASSWORD": "wrong"}, "Passwort-Authentifizierung"),
        ({"DATABASE_NAME": "missing"}, "existiert nicht"),
        ({"DATABASE_USERNAME": "nologin_{}"}, "Einloggen"),
        ({"DATABASE_USERNAME": "stranger_{}"}, "keine Berechtigung"),
    ],
    ids=["wrong password", "unknown database", "NOLOGIN", "no CONNECT"],
)
def test_a_mistake_reported_in_german_stops_the_start(
    wrong: dict[str, str], told: str, checkout: Checkout, database: TestDatabase
) -> None:
    wrong = {name: value.format(database.name) for name, value in wrong.items()}
    ended = checkout.run("serve", {**database.environment, **wrong})
    assert ended.returncode == 2, ended
    assert told in ended.stderr, "the server's own words"
    assert ended.stderr.count("\n") == 1


def test_a_host_that_is_called_invalid_is_waited_for(checkout: Checkout, database: TestDatabase) -> None:
    service = checkout.start({**database.environment, "DATABASE_HOSTNAME": "db.invalid"})
    try:
        until(lambda: "/readyz is 503 until it does" in service.log, "the start goes on")
    finally:
        service.stop()


def test_a_limit_reported_in_german_is_distinguished_from_an_outage(database: TestDatabase) -> None:
    with Service({**database.environment, **SHORT}) as service, database.as_superuser() as conn:
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT 0")
        terminate(database)
        until(lambda: "max_connections" in service.client.get("/users").text, "the limit is named")
        conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT -1")


def checked(checkout: Checkout, database: TestDatabase, parameters: str, **settings: str) -> str:
    server = f"{database.name}:{quote(PASSWORD)}@localhost:{database.cluster.port}/{database.name}"
    ended = checkout.run("check", {"DATABASE_URL": f"postgresql://{server}?{parameters}", **settings})
    return ended.stderr or ended.stdout


def test_check_says_whether_tls_is_in_force(checkout: Checkout, database: TestDatabase, tmp_path: Path) -> None:
    broken = tmp_path / "root.crt"
    broken.write_text("-----BEGIN CERTIFICATE-----\nnone\n")
    right = str(database.cluster.data / "server.crt")
    assert "TLS: in force" in checked(checkout, database, "")
    assert "TLS: not in force" in checked(checkout, database, f"sslrootcert={broken}"), "libpq goes on without it"
    assert "TLS: in force" in checked(checkout, database, "sslmode=verify-full", PGSSLROOTCERT=right)


@pytest.mark.parametrize("root", ["broken", "missing"])
def test_a_wrong_root_certificate_stops_the_start(
    root: str, checkout: Checkout, database: TestDatabase, tmp_path: Path
) -> None:
    path = tmp_path / root
    if root == "broken":
        path.write_text("-----BEGIN CERTIFICATE-----\nnone\n")
    server = f"{database.name}:{quote(PASSWORD)}@localhost:{database.cluster.port}/{database.name}"
    url = f"postgresql://{server}?sslmode=verify-full"
    ended = checkout.run("serve", {"DATABASE_URL": url, "PGSSLROOTCERT": str(path)})
    assert ended.returncode == 2
    assert str(path) in ended.stderr
    assert ended.stderr.count("\n") == 1
