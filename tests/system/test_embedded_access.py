"""What other users of the machine get from the embedded PostgreSQL of root, or of an ordinary user: nothing."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import psycopg
import pytest

from service.extras import embedded
from service.extras.embedded import EmbeddedError, command, programs

# The same as for an ordinary user alone, and what only root can try: to be somebody else.
from tests.process.test_embedded_access import (  # noqa: F401
    ENVIRONMENT,
    LONG,
    SECRET,
    mode,
    opened,
    postgres,
    refusal,
    test_data_that_were_open_to_everybody_are_kept_and_closed,
    test_it_asks_the_kernel_who_connects,
    test_its_files_are_their_owners_only,
    test_its_processes_have_no_capability_of_roots,
    test_postgresql_has_nothing_of_the_services_environment,
    test_postgresqls_variables_in_the_environment_change_nothing,
    test_the_data_may_lie_elsewhere_behind_a_link_of_their_owner,
    test_the_log_quotes_no_value_and_no_statement,
    test_the_umask_of_the_caller_does_not_matter,
)
from tests.support.accounts import NOBODY, ORDINARY, ROOT, ROOT_IN_THE_OPEN, Account
from tests.support.checkout import Checkout
from tests.support.parallel import at_once
from tests.support.process import Service


@pytest.fixture(
    scope="module",
    params=[*((account, "a, checkout") for account in (ORDINARY, ROOT, ROOT_IN_THE_OPEN)), (ROOT, LONG)],
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


@pytest.fixture
def account() -> Account:
    return ROOT


OTHER = 12345


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


@pytest.mark.parametrize("account", [ORDINARY, ROOT], ids=str)
def test_a_folder_that_another_user_put_there_stops_the_start(account: Account) -> None:
    with account.checkout() as checkout:
        planted = checkout.folder / ".data"
        planted.mkdir(mode=0o755)
        os.chown(planted, OTHER, OTHER)
        assert str(planted) in refusal(checkout)
        assert (mode(planted), list(planted.iterdir())) == (0o755, [])


@pytest.mark.parametrize("account", [ORDINARY, ROOT], ids=str)
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
