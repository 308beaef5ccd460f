"""The embedded PostgreSQL when a start is cut short, when the data are not ours, and what it leaves untouched."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.accounts import ORDINARY, Account, modes, stranger
from tests.support.checkout import Checkout
from tests.support.polling import until


@pytest.fixture
def account() -> Account:
    return ORDINARY


SIGNALS = {
    "SIGTERM": lambda pid: os.kill(pid, signal.SIGTERM),
    "Ctrl-C": lambda pid: os.killpg(pid, signal.SIGINT),  # as a terminal does
    "SIGKILL": lambda pid: os.kill(pid, signal.SIGKILL),
}

GLOBAL = "data.new/global"  # initdb has begun
CONTROL = "data.new/global/pg_control"  # initdb runs PostgreSQL itself
PID = "data/postmaster.pid"  # the server starts; there is no role yet


@pytest.mark.parametrize(
    ("stage", "send"),
    [(GLOBAL, "SIGKILL"), (CONTROL, "Ctrl-C"), (CONTROL, "SIGKILL"), (PID, "SIGTERM"), (PID, "SIGKILL")],
)
def test_a_first_start_that_was_cut_short_is_no_hindrance_to_the_next(stage: str, send: str) -> None:
    with ORDINARY.checkout() as checkout:
        service = checkout.start({}, "run")
        while not (checkout.folder / ".data" / stage).exists():  # without a pause: it is a matter of milliseconds
            assert service.process.poll() is None, service.log
        SIGNALS[send](service.process.pid)
        service.process.wait(30)
        log = service.log
        service.stop()
        assert "Traceback" not in log
        assert {"service", "schema.sql"} <= {path.name for path in checkout.folder.iterdir()}, "the checkout is whole"
        second = checkout.run("schema")
        assert (second.returncode, second.stderr) == (0, "")
        until(lambda: not checkout.processes(), "nothing runs any more", within=10)


def test_a_service_stopped_while_its_server_starts_leaves_no_server() -> None:
    with ORDINARY.checkout() as checkout:
        assert checkout.run("schema").returncode == 0
        service = checkout.start({}, "run")
        until(lambda: any("postgres -D" in process for process in checkout.processes()), "PostgreSQL starts")
        assert service.stop() == 0
        until(lambda: not checkout.processes(), "nothing runs any more", within=5)


def one_line(checkout: Checkout, command: str) -> str:
    """Return the one line with which the start is refused."""
    ended = checkout.run(command)
    assert ended.returncode == 2, ended
    assert ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def made_by(checkout: Checkout, version: str) -> Path:
    data = checkout.folder / ".data" / "data"
    data.mkdir(parents=True, mode=0o700)
    (data / "PG_VERSION").write_text(f"{version}\n")
    for path in (data.parent, data, data / "PG_VERSION"):
        shutil.chown(path, checkout.folder.stat().st_uid)
    return data


@pytest.mark.parametrize("command", ["check", "run"])
def test_data_of_another_version_stop_the_start_and_stay_as_they_are(command: str) -> None:
    with ORDINARY.checkout() as checkout:
        data = made_by(checkout, "16")
        line = one_line(checkout, command)
        assert "16" in line
        assert "18" in line
        assert str(data) in line
        assert [file.name for file in data.iterdir()] == ["PG_VERSION"]


def test_a_refused_start_does_not_end_whoever_has_the_pid_that_was_left_behind() -> None:
    with ORDINARY.checkout() as checkout, stranger() as living:
        try:
            data = made_by(checkout, "16")
            (data / "postmaster.pid").write_text(f"{living.pid}\n{data}\n0\n5432\n{data}\n\n0 0\nready\n")
            one_line(checkout, "check")
            assert living.poll() is None
        finally:
            living.kill()


def test_data_without_a_version_stop_the_start() -> None:
    with ORDINARY.checkout() as checkout:
        data = made_by(checkout, "18")
        (data / "PG_VERSION").unlink()
        assert str(data) in one_line(checkout, "check")


def test_a_copy_of_the_data_that_cannot_be_started_says_why() -> None:
    with ORDINARY.checkout() as checkout:
        assert checkout.run("schema").returncode == 0
        (checkout.folder / ".data" / "data" / "pg_notify").rmdir()  # as tools do that leave out empty folders
        line = one_line(checkout, "schema")
        assert "pg_notify" in line
        assert "postgres.log" in line


def test_a_copy_of_the_data_is_used(account: Account) -> None:
    with account.checkout() as checkout:
        assert checkout.run("schema").returncode == 0
        original = checkout.folder / ".data"
        original.rename(checkout.folder / "original")
        subprocess.run([*checkout.run_as, "cp", "--recursive", "original", ".data"], cwd=checkout.folder, check=True)
        (original / "data").chmod(0o755)
        done = checkout.run("schema")
        assert (done.returncode, done.stderr) == (0, "")


def test_no_permission_is_changed_of_the_folders_above_the_virtual_environment_or_the_checkout(
    account: Account,
) -> None:
    with account.checkout() as checkout:
        untouched = (Path(sys.prefix), Path(sys.base_prefix) / "bin", checkout.folder)
        before = modes(*untouched)
        with checkout.start({}, "run") as service:
            assert service.client.get("/users").json() == []
            assert (checkout.folder / ".data" / "data").stat().st_mode & 0o777 == 0o700
        after = modes(*untouched)
        assert {path: after.get(path) for path in before} == before
