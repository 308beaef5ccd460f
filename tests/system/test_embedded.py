"""The embedded PostgreSQL of root, which runs as another user, and data that are not ours."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.extras.embedded import programs
from tests.process.test_embedded import (  # noqa: F401 - the same as for an ordinary user
    test_a_pid_left_behind_that_is_another_programs_now_is_no_hindrance,
    test_a_user_survives_a_restart_and_nothing_runs_in_between,
    test_after_a_kill_the_next_start_sees_the_data_and_stops_the_server_at_its_end,
)
from tests.process.test_embedded_faults import (  # noqa: F401
    made_by,
    one_line,
    test_a_copy_of_the_data_is_used,
    test_no_permission_is_changed_of_the_folders_above_the_virtual_environment_or_the_checkout,
)
from tests.support.accounts import NOBODY, ORDINARY, ROOT, ROOT_IN_THE_OPEN, Account
from tests.support.checkout import Checkout, copied


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    """A checkout whose PostgreSQL has run before."""
    with ROOT.checkout() as checkout:
        assert checkout.run("schema").returncode == 0
        yield checkout


@pytest.fixture(params=[ROOT, ROOT_IN_THE_OPEN], ids=str)
def account(request: pytest.FixtureRequest) -> Account:
    found: Account = request.param
    return found


@pytest.mark.parametrize("of_root", [".data", ".data/data"])
def test_data_of_another_user_stop_the_start(of_root: str) -> None:
    with ORDINARY.checkout() as checkout:
        data = made_by(checkout, "18")
        (data / "postmaster.pid").touch()  # as a server leaves it that was killed at its start
        os.chown(checkout.folder / of_root, 0, 0)
        assert str(checkout.folder / of_root) in one_line(checkout, "check")


def test_a_user_id_without_a_name_stops_the_start_with_one_line() -> None:
    with Account("a user without a name", 54321).checkout() as checkout:
        assert "/etc/passwd has none for the user id 54321" in one_line(checkout, "schema")


def test_root_serves_the_data_of_an_ordinary_user_and_leaves_them_to_that_user() -> None:
    with ORDINARY.checkout() as checkout:
        assert checkout.run("schema").returncode == 0
        as_root = Checkout(checkout.folder)
        with as_root.start({}, "run") as service:
            assert service.client.get("/users").status_code == 200
        assert {path.stat().st_uid for path in (checkout.folder / ".data").rglob("*")} == {NOBODY}
        assert checkout.run("schema").returncode == 0


def test_programs_in_a_folder_closed_to_others_are_run_all_the_same(tmp_path: Path) -> None:
    package = programs().parents[1]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)  # as a checkout in /root is, with its virtual environment
    with copied() as checkout:
        for name in (package.name, f"{package.name}.libs"):
            shutil.copytree(
                package.with_name(name), closed / name, ignore=shutil.ignore_patterns("pginstall", "include")
            )
        done = checkout.run("schema", {"PYTHONPATH": str(closed)})
        assert (done.returncode, done.stderr) == (0, "")
