"""Without a database, `run` starts one of its own: kept between runs, shared, and stopped when nobody uses it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.accounts import ORDINARY, stranger
from tests.support.checkout import Checkout
from tests.support.parallel import at_once
from tests.support.polling import until


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    """A checkout whose PostgreSQL has run before."""
    with ORDINARY.checkout() as checkout:
        assert checkout.run("schema").returncode == 0
        yield checkout


def sign_up(client: httpx.Client) -> str:
    """Create a user and return its path."""
    email = f"{os.urandom(8).hex()}@example.com"
    answer = client.post("/users", json={"fname": "A", "lname": "B", "email": email, "password": "correct horse"})
    assert answer.status_code == 201
    return answer.headers["Location"]


def nothing_runs(checkout: Checkout) -> None:
    until(lambda: not checkout.processes(), f"nothing runs any more in {checkout.folder}", within=10)


def test_one_line_says_so_and_names_the_variable_that_points_to_yours(checkout: Checkout) -> None:
    with checkout.start({}, "run") as service:
        said = [line for line in service.log.splitlines() if "DATABASE_URL" in line]
    assert len(said) == 1
    assert "embedded PostgreSQL" in said[0]
    assert str(checkout.folder / ".data") in said[0]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_user_survives_a_restart_and_nothing_runs_in_between(checkout: Checkout, how: signal.Signals) -> None:
    with checkout.start({}, "run") as service:
        path = sign_up(service.client)
        assert any("postgres" in process for process in checkout.processes())
        assert service.stop(how) in (0, 130)
    nothing_runs(checkout)
    with checkout.start({}, "run") as service:
        assert service.client.get(path).status_code == 200


def test_the_process_that_serves_new_code_uses_the_same_server(checkout: Checkout) -> None:
    with checkout.start({}, "run") as service:
        path = sign_up(service.client)
        servers = [each for each in checkout.processes() if "/postgres -D " in each]
        (checkout.folder / "service" / "__init__.py").touch()
        until(lambda: service.log.count("Application startup complete") == 2, "the code is loaded again")
        assert service.client.get(path).status_code == 200
        assert [each for each in checkout.processes() if "/postgres -D " in each] == servers
        assert len(servers) == 1
    nothing_runs(checkout)


def test_two_services_share_the_server_and_the_first_to_end_leaves_it_to_the_second(checkout: Checkout) -> None:
    with checkout.start({}, "run") as first, checkout.start({}, "run") as second:
        path = sign_up(first.client)
        assert second.client.get(path).status_code == 200
        assert first.stop() == 0
        path = sign_up(second.client)
        assert second.client.get(path).status_code == 200
    nothing_runs(checkout)


def test_after_a_kill_the_next_start_sees_the_data_and_stops_the_server_at_its_end(checkout: Checkout) -> None:
    with checkout.start({}, "run") as service:
        path = sign_up(service.client)
        service.stop(signal.SIGKILL)
    with checkout.start({}, "run") as service:
        assert service.client.get(path).status_code == 200
    nothing_runs(checkout)


def test_a_pid_left_behind_that_is_another_programs_now_is_no_hindrance(checkout: Checkout) -> None:
    with checkout.start({}, "run") as service:
        path = sign_up(service.client)
        pid_file = checkout.folder / ".data" / "data" / "postmaster.pid"
        left = pid_file.read_text().splitlines(keepends=True)
    with stranger() as living:
        try:
            pid_file.write_text("".join([f"{living.pid}\n", *left[1:]]))
            os.chown(pid_file, pid_file.parent.stat().st_uid, -1)
            with checkout.start({}, "run") as service:
                assert service.client.get(path).status_code == 200
            assert living.poll() is None
        finally:
            living.kill()
    nothing_runs(checkout)


def test_a_very_long_path_is_no_hindrance() -> None:
    with ORDINARY.checkout("/".join(["a long way down"] * 10)) as checkout:
        assert len(str(checkout.folder)) > 107
        with checkout.start({}, "run") as service:
            assert service.client.get(sign_up(service.client)).status_code == 200
        nothing_runs(checkout)
        assert os.listdir(checkout.settings["TMPDIR"]) == []  # noqa: PTH208 - a list to be compared


def test_two_first_starts_at_once_make_one_server() -> None:
    with ORDINARY.checkout() as checkout:
        ended = at_once([lambda: checkout.run("schema")] * 2)
        assert [each.returncode for each in ended] == [0, 0], ended
        nothing_runs(checkout)


def test_a_copy_of_a_checkout_in_use_does_not_use_the_server_of_the_original(checkout: Checkout) -> None:
    with ORDINARY.checkout() as copy, checkout.start({}, "run") as original:
        path = sign_up(original.client)
        assert copy.run("schema").returncode == 0
        pid_file = Path(".data", "data", "postmaster.pid")  # says where the original's socket is
        (copy.folder / pid_file).write_bytes((checkout.folder / pid_file).read_bytes())
        with copy.start({}, "run") as service:
            assert service.client.get(path).status_code == 404
        assert original.client.get(path).status_code == 200


def test_a_service_whose_data_were_removed_leaves_its_successor_alone() -> None:
    with ORDINARY.checkout() as own:
        first = own.start({}, "run")
        with first:
            (own.folder / ".data").rename(own.folder / ".removed")
            with own.start({}, "run") as second:
                path = sign_up(second.client)
                assert first.stop() == 0
                assert "Traceback" not in first.log
                assert second.client.get(path).status_code == 200
