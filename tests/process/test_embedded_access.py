"""What other users of the machine get from the embedded PostgreSQL: nothing."""

import os
import pwd
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from service.extras import embedded
from service.extras.embedded import EmbeddedError, command, programs
from tests.support.accounts import ACCOUNTS, EVERYWHERE, NOBODY, Account
from tests.support.checkout import Checkout, descendants
from tests.support.parallel import at_once
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


@pytest.fixture(
    scope="module",
    params=[*((account, "a, checkout") for account in EVERYWHERE), (ACCOUNTS[-1], LONG)],
    ids=lambda param: f"{param[0]}{', long path' if param[1] == LONG else ''}",
)
def checkout(request: pytest.FixtureRequest) -> Iterator[Checkout]:
    account, below = request.param
    with account.checkout(below) as checkout:
        yield checkout


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


@pytest.mark.parametrize("account", ACCOUNTS, ids=str)
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


@pytest.mark.parametrize(("account", "umasks"), [(ACCOUNTS[0], ("0777", "0")), (ACCOUNTS[-1], ("0", "0777"))], ids=str)
def test_the_umask_of_the_caller_does_not_matter(account: Account, umasks: tuple[str, str]) -> None:
    with account.checkout() as checkout:
        for umask in umasks:
            under = ("sh", "-c", f'umask {umask}; exec "$@"', "sh")
            ended = replace(checkout, run_as=(*checkout.run_as, *under)).run("schema")
            assert (ended.returncode, ended.stderr) == (0, "")
            assert others_may_read(checkout) == set()


@pytest.mark.parametrize("account", ACCOUNTS, ids=str)
def test_the_data_may_lie_elsewhere_behind_a_link_of_their_owner(account: Account) -> None:
    with account.checkout() as checkout:
        elsewhere = checkout.folder.parent / "elsewhere"
        elsewhere.mkdir()
        (checkout.folder / ".data").symlink_to(elsewhere)
        for path in (elsewhere, checkout.folder / ".data"):
            os.chown(path, account.uid, -1, follow_symlinks=False)
        assert checkout.run("schema").returncode == 0
        assert (elsewhere / "data" / "PG_VERSION").exists()


if os.geteuid() == 0:  # only root can be somebody else
    OTHER = 12345
    ROOT = ACCOUNTS[-1]

    @contextmanager
    def acting_as(uid: int) -> Iterator[None]:
        groups = os.getgroups()
        os.setgroups([])
        os.setresgid(uid, uid, 0)
        os.setresuid(uid, uid, 0)
        try:
            yield
        finally:
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)
            os.setgroups(groups)

    def others(checkout: Checkout) -> set[int]:
        """Return other users than the one whose data it is; an ordinary user's are nobody's in these tests."""
        return {NOBODY, OTHER} - {(checkout.folder / ".data").stat().st_uid}

    @pytest.mark.usefixtures("service")
    def test_no_other_user_reaches_the_data_the_log_or_the_socket(checkout: Checkout) -> None:
        data = checkout.folder / ".data"
        for uid in others(checkout):
            with opened(data) as descriptor, opened(data / "data") as inner, acting_as(uid):
                for folder, name in ((descriptor, "postgres.log"), (descriptor, "data"), (inner, "PG_VERSION")):
                    with pytest.raises(PermissionError):
                        os.open(name, os.O_RDONLY, dir_fd=folder)
                with pytest.raises(psycopg.OperationalError, match="Permission denied"):
                    psycopg.connect(host=f"/proc/self/fd/{inner}", user="users", dbname="users")

    @pytest.mark.usefixtures("service")
    @pytest.mark.parametrize("role", ["users", "postgres"])
    def test_no_other_user_could_connect_if_the_folders_were_open(checkout: Checkout, role: str) -> None:
        data = checkout.folder / ".data" / "data"
        data.chmod(0o711)
        try:
            for uid in others(checkout):
                with (
                    opened(data) as descriptor,
                    acting_as(uid),
                    pytest.raises(psycopg.OperationalError, match="Peer authentication failed"),
                ):
                    psycopg.connect(host=f"/proc/self/fd/{descriptor}", user=role, dbname="users")
        finally:
            data.chmod(0o700)

    def denied(pid: int) -> bool:
        """Tell whether everything of a process is denied; False when it has ended."""
        try:
            for name in ("environ", "mem", "maps"):
                with suppress(PermissionError):
                    assert not Path(f"/proc/{pid}/{name}").read_bytes(), f"{name} of {pid} can be read"
                    return False  # it is ending: it has no memory any more, and so nothing to deny
            for name in ("cwd", "exe"):
                with pytest.raises(PermissionError):
                    os.readlink(f"/proc/{pid}/{name}")  # noqa: PTH115 - a Path would swallow it
        except (FileNotFoundError, ProcessLookupError):
            return False
        return True

    def test_no_other_user_sees_into_its_processes(checkout: Checkout, service: Service) -> None:
        pids = [service.process.pid, *postgres(service)]
        for uid in others(checkout):
            with acting_as(uid):
                assert all(denied(pid) for pid in pids)
                for pid in pids:
                    with pytest.raises(PermissionError):
                        os.kill(pid, 0)

    def test_nobody_sees_into_the_first_start() -> None:
        with ROOT.checkout() as checkout:
            first = checkout.start({"AWS_SECRET_ACCESS_KEY": SECRET}, "run")
            seen: set[str] = set()
            while not {"initdb", "postgres"} <= seen:
                assert first.process.poll() is None, first.log
                for process in psutil.Process(first.process.pid).children(recursive=True):
                    try:
                        name = process.name() if process.uids().effective else ""  # root before it became nobody
                    except psutil.NoSuchProcess:
                        continue
                    if name not in ("initdb", "postgres"):
                        continue
                    with suppress(FileNotFoundError, ProcessLookupError):
                        assert SECRET.encode() not in Path(f"/proc/{process.pid}/environ").read_bytes()
                    with acting_as(NOBODY):
                        if denied(process.pid):
                            seen.add(name)
            with first:
                assert first.client.get("/users").json() == []

    @pytest.mark.parametrize("account", ACCOUNTS, ids=str)
    def test_a_folder_that_another_user_put_there_stops_the_start(account: Account) -> None:
        with account.checkout() as checkout:
            planted = checkout.folder / ".data"
            planted.mkdir(mode=0o755)
            os.chown(planted, OTHER, OTHER)
            assert str(planted) in refusal(checkout)
            assert (mode(planted), list(planted.iterdir())) == (0o755, [])

    @pytest.mark.parametrize("account", ACCOUNTS, ids=str)
    def test_a_link_that_another_user_put_there_stops_the_start(account: Account) -> None:
        with account.checkout() as checkout:
            target = checkout.folder.parent / "target"
            target.mkdir(mode=0o755)
            os.chown(target, account.uid, -1)
            planted = checkout.folder / ".data"
            planted.symlink_to(target)
            os.chown(planted, OTHER, OTHER, follow_symlinks=False)
            assert str(planted) in refusal(checkout)
            assert (mode(target), list(target.iterdir())) == (0o755, [])

    def test_roots_data_that_another_user_could_change_stop_the_start() -> None:
        with ROOT.checkout() as checkout:
            assert checkout.run("schema").returncode == 0
            data = checkout.folder / ".data" / "data"
            os.chown(data, NOBODY, NOBODY)
            assert f"{data} belongs to the user nobody" in refusal(checkout)
            assert (data.stat().st_uid, (data / "PG_VERSION").stat().st_uid) == (NOBODY, embedded.SERVER_ID)

    @pytest.fixture(scope="module")
    def closed() -> Iterator[Path]:
        """The wheel's programs in a folder that only root enters, and an open folder beside it."""
        package = programs().parents[1]
        with tempfile.TemporaryDirectory(prefix="closed-") as folder:
            base = Path(folder)
            base.chmod(0o755)
            (base / "open").mkdir(mode=0o755)
            (base / "closed").mkdir(mode=0o700)
            (base / "data").mkdir()
            os.chown(base / "data", OTHER, OTHER)
            for name in (package.name, f"{package.name}.libs"):
                ignore = shutil.ignore_patterns("pginstall", "include", "*.a")
                shutil.copytree(package.with_name(name), base / "closed" / name, ignore=ignore)
            yield base / "closed" / package.name / programs().parent.name / "bin"

    def test_programs_in_a_closed_folder_are_copied_once(closed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        base = closed.parents[3]
        cache = base / "open" / "cache"
        monkeypatch.setattr(embedded, "CACHE", cache)
        before = os.umask(0o077)
        try:
            argvs = at_once([lambda: command(closed / "initdb", base / "data")] * 2)
        finally:
            os.umask(before)
        assert argvs[0] == argvs[1]
        assert len(list(cache.iterdir())) == 1
        copy = Path(argvs[0][-1])
        assert copy.is_relative_to(cache)
        assert {path.stat().st_uid for path in cache.rglob("*")} == {0}
        assert not any(mode(path) & 0o022 for path in cache.rglob("*"))

    def test_programs_that_nobody_else_can_run_are_refused_with_the_way_out(
        closed: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        base = closed.parents[3]
        monkeypatch.setattr(embedded, "CACHE", base / "closed" / "cache")
        with pytest.raises(EmbeddedError, match="DATABASE_URL"):
            command(closed / "initdb", base / "data")
