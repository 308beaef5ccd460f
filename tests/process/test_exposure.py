"""What the start says about who may do what, and the commands that prepare a service for others."""

import os
import re
import socket
import sys
from pathlib import Path

import pytest

from service.web.api_keys import add_key
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service, run_command

pytestmark = pytest.mark.usefixtures("cheap_hashes")

NO_SERVER = {"DATABASE_URL": "postgresql://nobody@/nobody?host=/nowhere", "PORT": "0"}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with one key, made by the command."""
    path = tmp_path_factory.mktemp("keys") / "api-keys"
    made = run_command({"API_KEYS_FILE": str(path)}, "key", "ada", "--scope", "read")
    assert made.returncode == 0, made
    assert re.fullmatch(r"users_[0-9A-Za-z]{33}\n", made.stdout)
    assert str(path) in made.stderr
    assert made.stdout.strip() not in path.read_text() + made.stderr
    return path


def test_a_key_is_made_only_where_the_service_looks_for_it(file: Path) -> None:
    assert "API_KEYS_FILE" in run_command({}, "key", "ada", "--scope", "read").stderr
    for settings, name in (({"API_KEYS_FILE": "/proc/nowhere/keys"}, "ada"), ({"API_KEYS_FILE": str(file)}, "ada")):
        refused = run_command(settings, "key", name, "--scope", "read")
        assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1)


def test_an_address_that_others_reach_is_not_listened_to_without_keys() -> None:
    refused = run_command(NO_SERVER | {"HOST": "0.0.0.0"}, "serve")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert all(name in refused.stderr for name in ("HOST=0.0.0.0", "API_KEYS_FILE", "ANONYMOUS_ACCESS"))


def test_a_file_of_keys_that_cannot_be_read_stops_the_start(tmp_path: Path) -> None:
    refused = run_command(NO_SERVER | {"API_KEYS_FILE": str(tmp_path / "none")}, "serve")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "API_KEYS_FILE" in refused.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "whoever is on this machine may do everything"),
        ({"HOST": "0.0.0.0", "ANONYMOUS_ACCESS": "read"}, "whoever has none may read"),
        ({"HOST": "0.0.0.0", "API_KEYS_FILE": "FILE"}, "API keys in FILE: 1; whoever has none may do nothing"),
    ],
)
def test_the_start_says_who_may_do_what(
    database: TestDatabase, file: Path, settings: dict[str, str], said: str
) -> None:
    settings = {name: value.replace("FILE", str(file)) for name, value in settings.items()}
    with Service(database.environment | settings) as service:
        lines = [line for line in service.log.splitlines() if "may" in line]
    assert len(lines) == 1
    assert said.replace("FILE", str(file)) in lines[0]


def test_the_start_tells_root_to_be_somebody_else(database: TestDatabase) -> None:
    with Service(database.environment) as service:
        assert ("serving as root" in service.log) == (os.geteuid() == 0)


def test_systemd_gets_word_when_requests_are_served(database: TestDatabase, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(30)
        with Service(database.environment | {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WORKERS": "2"}) as service:
            assert manager.recv(64) == b"READY=1"
            assert service.client.get("/livez").status_code == 200


def test_the_unit_has_the_limits_that_follow_from_the_settings() -> None:
    made = run_command({"WORKERS": "3", "GRACEFUL_SHUTDOWN_TIMEOUT": "20.5"}, "unit")
    assert {
        "Type=notify", "DynamicUser=yes", "ProtectSystem=strict", "NoNewPrivileges=yes", "LimitCORE=0",
        "LimitNOFILE=65536", "MemoryMax=1792M", "TimeoutStopSec=26", f"ExecStart={sys.executable} -m service serve",
    } <= set(made.stdout.splitlines())  # fmt: skip
    assert "ExecReload" in made.stdout
    assert "ExecReload" not in run_command({}, "unit").stdout


def test_a_key_that_root_makes_belongs_to_the_owner_of_the_folder(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        os.chown(tmp_path, 12345, 12345)
    add_key(tmp_path / "api-keys", "ada", "read")
    assert (tmp_path / "api-keys").stat().st_uid == tmp_path.stat().st_uid


def test_a_key_is_in_no_command_line_and_no_log(database: TestDatabase, file: Path) -> None:
    key = run_command({"API_KEYS_FILE": str(file)}, "key", "grace", "--scope", "write").stdout.strip()
    with Service(database.environment | {"API_KEYS_FILE": str(file), "LOG_FORMAT": "json"}) as service:
        for headers in ({"Authorization": f"Bearer {key}"}, {"Authorization": f"Basic {key}"}):
            service.client.get("/users", headers=headers)
        until(lambda: '"status":401' in service.log, "both are logged")
        assert key.encode() not in Path(f"/proc/{service.process.pid}/cmdline").read_bytes()
        assert '"caller":"grace"' in service.log
        assert key not in service.log
