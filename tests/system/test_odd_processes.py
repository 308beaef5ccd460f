"""Where a container puts the service: as its first process, as a user with no name, in any folder."""

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.support.accounts import ORDINARY, become
from tests.support.postgres import TestDatabase
from tests.support.process import Service

SERVE = [sys.executable, "-m", "service", "serve"]
UNNAMED = 54321  # no user of /etc/passwd


@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_first_process_of_a_container_ends_at_sigterm(workers: str, database: TestDatabase) -> None:
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", *SERVE]
    with Service(database.environment | {"WORKERS": workers}, argv=argv) as service:
        outside = service.process.pid
        first = int(Path(f"/proc/{outside}/task/{outside}/children").read_text())
        os.kill(first, signal.SIGTERM)
        assert service.process.wait(20) == 0
        assert "Traceback" not in service.log


def test_a_user_that_has_no_name_can_serve(database: TestDatabase) -> None:
    reads = ("--inh-caps=-all,+dac_read_search", "--ambient-caps=-all,+dac_read_search")  # the interpreter of root
    argv = [*become(UNNAMED), "--securebits=+no_setuid_fixup", *reads, "--", "env", "-u", "HOME", *SERVE]
    with Service(database.environment | {"WORKERS": "2"}, argv=argv) as service:
        assert service.client.get("/users").json() == []
        assert service.client.get("/metrics").status_code == 200
        assert service.stop() == 0


@pytest.mark.parametrize("command", ["serve", "run"])
def test_the_folder_may_have_any_name(command: str, database: TestDatabase) -> None:
    settings = {} if command == "run" else database.environment  # a PostgreSQL of its own, which has paths as well
    with ORDINARY.checkout('a,b {c} 100% it\'s "ü" *') as checkout, checkout.start(settings, command) as service:
        assert service.client.get("/users").json() == []
        assert "<script" in service.client.get("/pool", headers={"Accept": "text/html"}).text
