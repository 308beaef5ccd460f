"""What other users of the machine get from the embedded PostgreSQL: nothing."""

import os
import pwd
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from service.extras import embedded
from tests.support.accounts import ORDINARY, Account
from tests.support.checkout import Checkout, descendants
from tests.support.polling import until
from tests.support.process import Service

LONG = "/".join(["a, long way down"] * 10)
SECRET = "only the service may know this"
EMAIL = "ada@example.com"

# Each of these stops the service, or changes what it gets, when it reaches PostgreSQL or libpq.
ENVIRONMENT = {
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "PGDATA": "/nonexistent",
    "PGDATESTYLE": "SQL, DMY",
    "PGHOSTADDR": "192.0.2.1",
    "PGOPTIONS": "-c default_transaction_read_only=on",
    "PGPORT": "1",
    "PGREQUIREAUTH": "scram-sha-256",
    "PGSERVICE": "none",
    "PGTZ": "Asia/Kolkata",
}


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    with ORDINARY.checkout(LONG) as checkout:
        yield checkout


@pytest.fixture
def account() -> Account:
    return ORDINARY


@pytest.fixture(scope="module")
def service(checkout: Checkout) -> Iterator[Service]:
    """A service that has made its data just now."""
    with checkout.start(ENVIRONMENT, "run") as service:
        yield service


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    """Open a folder: what is in it can be had past the folders above it, which may be closed, and have long names."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def connected(checkout: Checkout, user: str = "users") -> Iterator[psycopg.Connection]:
    with (
        opened(checkout.folder / ".data") as descriptor,
        psycopg.connect(
            host=f"/proc/self/fd/{descriptor}/data", user=user, dbname="users", autocommit=True, connect_timeout=5
        ) as conn,
    ):
        yield conn


def sign_up(service: Service) -> str:
    email = f"{os.urandom(8).hex()}@example.com"
    answer = service.client.post("/users", json={"fname": "A", "lname": "B", "email": email, "password": "p" * 8})
    assert answer.status_code == 201
    return answer.headers["Location"]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def others_may_read(checkout: Checkout) -> set[Path]:
    """Return what gives others a permission; the socket does, and lies in a folder that does not."""
    data = checkout.folder / ".data"
    return {path for path in (data, *data.rglob("*")) if not path.is_socket() and mode(path) & 0o077}


def postgres(service: Service) -> list[int]:
    """Return the processes of PostgreSQL that stay: the first, and those it keeps. Others may end at any time."""
    stay = ("postgres -D", "checkpointer", "background writer", "walwriter", "autovacuum launcher")

    def kept() -> list[int]:
        found: dict[str, int] = {}
        for pid in descendants(service):
            with suppress(psutil.NoSuchProcess):
                line = " ".join(psutil.Process(pid).cmdline())
                found |= {name: pid for name in stay if "postgres" in line and name in line}
        return list(found.values()) if len(found) == len(stay) else []

    return until(kept, "PostgreSQL runs")


def refusal(checkout: Checkout) -> str:
    """Return the one line with which the start is refused."""
    ended = checkout.run("check")
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def test_postgresqls_variables_in_the_environment_change_nothing(checkout: Checkout, service: Service) -> None:
    assert service.client.get(sign_up(service)).status_code == 200
    with connected(checkout) as conn:
        assert conn.execute("SELECT count(*) FROM pg_stat_activity WHERE datname = 'users'").fetchone() != (1,)
        assert conn.execute("SHOW timezone").fetchone() == ("UTC",)


def test_postgresql_has_nothing_of_the_services_environment(service: Service) -> None:
    for pid in postgres(service):
        found = Path(f"/proc/{pid}/environ").read_bytes()
        assert SECRET.encode() not in found
        assert b"PG" not in found


@pytest.mark.usefixtures("service")
def test_its_files_are_their_owners_only(checkout: Checkout) -> None:
    assert others_may_read(checkout) == set()


@pytest.mark.usefixtures("service")
def test_the_log_quotes_no_value_and_no_statement(checkout: Checkout) -> None:
    with connected(checkout) as conn:
        conn.execute("CREATE TEMPORARY TABLE one (email text UNIQUE)")
        conn.execute("INSERT INTO one VALUES (%s)", [EMAIL])
        for statement in (
            f"INSERT INTO one VALUES ('{EMAIL}')",
            f"SELECT CAST('{EMAIL}' AS int)",
            f"SELECT '{EMAIL}' FROM nowhere",
            f"SELECT pg_terminate_backend(pg_backend_pid()), '{EMAIL}'",
        ):
            with pytest.raises(psycopg.Error):
                conn.execute(statement)
    log = checkout.folder / ".data" / "postgres.log"
    until(lambda: "terminating connection" in log.read_text(), "PostgreSQL writes its log")
    assert EMAIL not in log.read_text()


def rules(checkout: Checkout) -> list[tuple[object, ...]]:
    """Return PostgreSQL's own reading of who may connect, and how."""
    with connected(checkout, "postgres") as conn:
        who = conn.execute("SELECT sys_name, pg_username, error FROM pg_ident_file_mappings").fetchall()
        return [*conn.execute("SELECT type, auth_method, error FROM pg_hba_file_rules"), *sorted(who)]


def peer_only(checkout: Checkout) -> list[tuple[object, ...]]:
    """Return the rules there should be: for root, and the owner of the folder."""
    names = {pwd.getpwuid(uid).pw_name for uid in (0, (checkout.folder / ".data").stat().st_uid)}
    mapped = [(name, role, None) for name in names for role in ("users", "postgres")]
    return [("local", "peer", None), *sorted(mapped)]


@pytest.mark.usefixtures("service")
def test_it_asks_the_kernel_who_connects(checkout: Checkout) -> None:
    assert rules(checkout) == peer_only(checkout)


def test_its_processes_have_no_capability_of_roots(checkout: Checkout, service: Service) -> None:
    root = (checkout.folder / ".data").stat().st_uid == 0
    own = {"0"} if root else capabilities(service.process.pid)
    for pid in postgres(service):
        assert capabilities(pid) <= own
        if root:
            assert status(pid, "NoNewPrivs", "Groups") == {"1", ""}
            assert status(pid, "Uid", "Gid") == {"\t".join([str(embedded.SERVER_ID)] * 4)}


def capabilities(pid: int) -> set[str]:
    return {value.lstrip("0") or "0" for value in status(pid, "CapInh", "CapPrm", "CapEff", "CapAmb")}


def status(pid: int, *names: str) -> set[str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    found = {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    return {found[name] for name in names}


def open_to_everybody(checkout: Checkout) -> Path:
    """Open a checkout's data to everybody, and put a link among them; return what the link points to."""
    data = checkout.folder / ".data"
    data.chmod(0o755)
    (data / "postgres.log").chmod(0o644)
    (data / "data" / "pg_hba.conf").write_text("local all all trust\n")
    victim = checkout.folder / "victim"
    victim.write_text("as it was")
    victim.chmod(0o644)
    (data / "data" / "pg_ident.conf").unlink()
    (data / "data" / "pg_ident.conf").symlink_to(victim)
    return victim


def test_data_that_were_open_to_everybody_are_kept_and_closed(account: Account) -> None:
    with account.checkout() as checkout:
        with checkout.start({}, "run") as service:
            path = sign_up(service)
        victim = open_to_everybody(checkout)
        before = victim.stat()
        with checkout.start({}, "run") as service:
            assert service.client.get(path).status_code == 200
            assert rules(checkout) == peer_only(checkout)
            assert others_may_read(checkout) == set()
        after = victim.stat()
        assert (victim.read_text(), after.st_uid, after.st_mode) == ("as it was", before.st_uid, before.st_mode)


@pytest.mark.parametrize("umasks", [("0777", "0"), ("0", "0777")])
def test_the_umask_of_the_caller_does_not_matter(account: Account, umasks: tuple[str, str]) -> None:
    with account.checkout() as checkout:
        for umask in umasks:
            under = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
            ended = replace(checkout, run_as=(*checkout.run_as, *under)).run("schema")
            assert (ended.returncode, ended.stderr) == (0, "")
            assert others_may_read(checkout) == set()


def test_the_data_may_lie_elsewhere_behind_a_link_of_their_owner(account: Account) -> None:
    with account.checkout() as checkout:
        elsewhere = checkout.folder.parent / "elsewhere"
        elsewhere.mkdir()
        (checkout.folder / ".data").symlink_to(elsewhere)
        for path in (elsewhere, checkout.folder / ".data"):
            os.chown(path, account.uid, -1, follow_symlinks=False)
        assert checkout.run("schema").returncode == 0
        assert (elsewhere / "data" / "PG_VERSION").exists()
