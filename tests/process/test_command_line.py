"""What `python -m service` says, and the ways to a database that it knows."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from urllib.parse import quote

import httpx
import pytest

from service.settings import Settings
from tests.support.checkout import Checkout, copied
from tests.support.fork_server import ForkServer
from tests.support.postgres import PASSWORD, Cluster, TestDatabase, free_port, installed
from tests.support.process import CHECKOUT, Service, environment

NO_DATABASE = re.compile(r"DATABASE_URL is missing: set it to postgresql://")
ADA = {"id": 1, "fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}


@pytest.fixture
def checkout(fork_server: ForkServer) -> Iterator[Checkout]:
    """A folder of its own; its commands are forked, its services start as users start them."""
    with copied() as checkout:
        yield replace(checkout, fork_server=fork_server)


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[Cluster]:
    """PostgreSQL with 13 connections for ordinary roles."""
    limits = {"max_connections": "20", "superuser_reserved_connections": "2", "reserved_connections": "5"}
    with Cluster(installed()["18"], limits) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def small(small_cluster: Cluster) -> TestDatabase:
    return small_cluster.create_database()


def url(database: TestDatabase) -> str:
    return f"postgresql://{database.name}:{quote(PASSWORD)}@127.0.0.1:{database.cluster.port}/{database.name}"


def refused(checkout: Checkout, command: str, settings: dict[str, str]) -> str:
    """Return the one line with which a command ends that cannot do its work."""
    ended = checkout.run(command, settings)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert PASSWORD not in ended.stdout + ended.stderr
    return ended.stderr


def test_check_prints_the_settings_the_version_and_the_sum(checkout: Checkout, database: TestDatabase) -> None:
    asked = {"WORKERS": "2", "WORKER_THREADS": "3", "INSTANCES": "4"}
    checked = checkout.run("check", database.environment | asked)
    assert (checked.returncode, checked.stderr) == (0, "")
    shown = dict(re.findall(r"^([A-Z_]+)=(.*)$", checked.stdout, re.MULTILINE))
    assert sorted(shown) == sorted(name.upper() for name in Settings.model_fields)
    assert asked.items() <= shown.items()
    assert shown["DATABASE_NAME"] == database.name
    assert PASSWORD not in checked.stdout
    assert re.search(r"^PostgreSQL 18\.\d+$", checked.stdout, re.MULTILINE)
    assert "24 needed = 2 workers x 3 threads x 4 instances" in checked.stdout
    assert "97 allowed = max_connections 100 - 3 reserved" in checked.stdout


def test_check_changes_nothing_in_the_database(checkout: Checkout, cluster: Cluster) -> None:
    database = cluster.create_database()
    assert checkout.run("check", database.environment).returncode == 0
    with database.connect() as conn:
        assert conn.execute("""SELECT to_regclass('public."user"')""").fetchone() == (None,)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"DATABASE_PORT": "nobody listens"}, "refused"),
        ({"DATABASE_HOSTNAME": "/nowhere"}, "/nowhere"),
        ({"DATABASE_PASSWORD": "wrong"}, "password authentication failed"),
        ({"DATABASE_PASSWORD": ""}, "no password supplied"),
        ({"DATABASE_USERNAME": "stranger"}, '"stranger"'),
        ({"DATABASE_NAME": "missing"}, 'database "missing" does not exist'),
    ],
    ids=["unreachable", "no socket", "wrong password", "no password", "unknown role", "unknown database"],
)
def test_a_server_that_cannot_be_used_is_reported_in_one_line(
    checkout: Checkout, database: TestDatabase, wrong: dict[str, str], told: str
) -> None:
    if "DATABASE_PORT" in wrong:
        wrong = {"DATABASE_PORT": str(free_port())}
    assert told in refused(checkout, "check", database.environment | wrong)


@pytest.mark.parametrize("command", ["schema", "serve"])
def test_a_mistake_that_waiting_does_not_mend_stops_every_command(
    checkout: Checkout, database: TestDatabase, command: str
) -> None:
    wrong = {"DATABASE_PASSWORD": "wrong"}
    assert "password authentication failed" in refused(checkout, command, database.environment | wrong)


@pytest.mark.parametrize(
    ("command", "asked", "needed"),
    [
        ("check", {"WORKER_THREADS": "14"}, "14 needed = 1 workers x 14 threads x 1 instances"),
        ("serve", {"WORKERS": "2", "WORKER_THREADS": "7"}, "14 needed = 2 workers x 7 threads x 1 instances"),
        ("check", {"INSTANCES": "2", "WORKER_THREADS": "7"}, "14 needed = 1 workers x 7 threads x 2 instances"),
        (
            "check",
            {"WORKER_THREADS": "12", "DATABASE_READ_URL": "postgresql://nowhere.invalid/users"},
            "14 needed = 1 workers x (12 threads + 2 watches) x 1 instances",
        ),
    ],
)
def test_connections_that_cannot_fit_the_server_stop_the_start_with_the_sum(
    checkout: Checkout, small: TestDatabase, command: str, asked: dict[str, str], needed: str
) -> None:
    line = refused(checkout, command, small.environment | asked)
    assert needed in line
    assert "13 allowed = max_connections 20 - 7 reserved" in line


def test_check_says_when_the_connections_of_a_restart_do_not_fit(checkout: Checkout, small: TestDatabase) -> None:
    tight = checkout.run("check", small.environment | {"WORKER_THREADS": "7"})
    assert "13 allowed = max_connections 20 - 7 reserved" in tight.stdout
    assert "a restart without refused requests needs 7 more" in tight.stdout
    assert "restart" not in checkout.run("check", small.environment | {"WORKER_THREADS": "6"}).stdout


def test_connections_that_just_fit_the_server_are_served(checkout: Checkout, small: TestDatabase) -> None:
    with checkout.start(small.environment | {"WORKER_THREADS": "13"}) as service:
        assert service.client.get("/users").status_code == 200


@pytest.mark.parametrize("limited", ["ROLE", "DATABASE"])
def test_a_limit_of_the_role_or_the_database_counts_too(
    checkout: Checkout, small_cluster: Cluster, limited: str
) -> None:
    database = small_cluster.create_database()
    with database.as_superuser() as conn:
        conn.execute(f"ALTER {limited} {database.name} CONNECTION LIMIT 4")
    line = refused(checkout, "check", database.environment | {"WORKER_THREADS": "5"})
    assert "5 needed" in line
    assert "4 allowed" in line
    assert f"{limited.lower()} limit 4" in line
    assert checkout.run("check", database.environment | {"WORKER_THREADS": "4"}).returncode == 0


def test_a_database_that_cannot_hold_every_name_stops_the_start(checkout: Checkout, small_cluster: Cluster) -> None:
    database = small_cluster.create_database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0")
    line = refused(checkout, "serve", database.environment)
    assert "LATIN1" in line
    assert "UTF8" in line


def test_schema_makes_the_table_and_can_be_run_again(checkout: Checkout, cluster: Cluster) -> None:
    database = cluster.create_database()
    for _ in range(2):
        assert checkout.run("schema", database.environment).returncode == 0
    with database.connect() as conn:
        assert conn.execute('SELECT count(*) FROM public."user"').fetchone() == (0,)


@pytest.mark.parametrize("way", ["TCP", "a Unix socket", "a URL", "a URL of a Unix socket", "a file"])
def test_it_serves_a_database_reached_by(way: str, checkout: Checkout, cluster: Cluster) -> None:
    database = cluster.create_database()
    settings = database.environment
    if "URL" in way:
        settings = {"DATABASE_URL": url(database)}
    if "Unix socket" in way:
        host = str(cluster.folder)
        settings = {name: value.replace("127.0.0.1", quote(host, "" if "URL" in way else "/"))
                    for name, value in settings.items()}  # fmt: skip
    if "file" in way:
        (checkout.folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        settings = {}
    with checkout.start(settings) as service:
        assert service.client.post("/users", json=ADA).status_code == 201
        assert service.client.get("/users/1").json()["fname"] == "Ada"
        assert PASSWORD not in service.log
    with database.connect() as conn:
        assert conn.execute('SELECT id FROM public."user"').fetchall() == [(1,)]


UVICORN = [sys.executable, "-m", "uvicorn", "--factory", "service.app:create_app", "--port", "0"]


def refused_by_uvicorn(checkout: Checkout) -> str:
    """Return the one line with which uvicorn ends."""
    env = environment({}, checkout.folder)
    ended = subprocess.run(UVICORN, cwd=checkout.folder, env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def test_uvicorn_serves_it_too(checkout: Checkout, database: TestDatabase) -> None:
    with Service(database.environment, checkout=checkout.folder, argv=UVICORN) as service:
        assert httpx.get(f"{service.url}/users").json() == []


def test_uvicorn_ends_at_a_wrong_setting_with_one_line_too(checkout: Checkout) -> None:
    (checkout.folder / ".env").write_text("WORKERS=none\n")
    assert refused_by_uvicorn(checkout).startswith("WORKERS='none': it takes ")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_serve_does_not_start_without_a_database_and_says_what_to_set(checkout: Checkout, workers: str) -> None:
    assert NO_DATABASE.match(refused(checkout, "serve", {"WORKERS": workers}))
    assert not (checkout.folder / ".data").exists()


def test_nor_does_uvicorn(checkout: Checkout) -> None:
    assert NO_DATABASE.match(refused_by_uvicorn(checkout))
    assert not (checkout.folder / ".data").exists()


def test_make_help_lists_every_target_and_is_the_default() -> None:
    shown = {
        subprocess.run(["make", *target], cwd=CHECKOUT, capture_output=True, text=True, check=True).stdout
        for target in ([], ["help"])
    }
    assert len(shown) == 1
    listed = re.findall(r"^ *make (\S+) +\w", shown.pop(), re.MULTILINE)
    targets = re.search(r"^\.PHONY: (.+)$", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    assert targets
    assert sorted(listed) == sorted(targets[1].split())
