"""The limits of a container, set by the kernel's control groups."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

import pytest

from tests.support.polling import until
from tests.support.process import CHECKOUT, environment

ROOT = Path("/sys/fs/cgroup")
NOWHERE = {"DATABASE_HOSTNAME": "/nowhere", "DATABASE_NAME": "x", "DATABASE_USERNAME": "x", "PORT": "0"}
PRINT_HASHES = [sys.executable, "-c", "from service.users.passwords import MAX_HASHES; print(MAX_HASHES)"]
SERVE = [sys.executable, "-m", "service", "serve"]


@contextmanager
def limited(controller: str, v2: dict[str, str], v1: dict[str, str]) -> Iterator[list[str]]:
    """Make a control group with the limit; yield what stands before a command that is to run in it."""
    is_v2 = (ROOT / "cgroup.controllers").exists()
    if is_v2:
        (ROOT / "cgroup.subtree_control").write_text(f"+{controller}")
    group = (ROOT if is_v2 else ROOT / controller) / f"test-{token_hex(4)}"
    group.mkdir()
    try:
        for name, value in (v2 if is_v2 else v1).items():
            (group / name).write_text(value)
        yield ["sh", "-c", f'echo $$ >{group}/cgroup.procs && exec "$@"', "sh"]
    finally:
        until(lambda: not (group / "cgroup.procs").read_text(), "its processes end")
        group.rmdir()


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=CHECKOUT, env=environment(NOWHERE), capture_output=True, text=True, check=False, timeout=60
    )


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_limit_of_threads_that_is_too_low_stops_the_start_with_one_line(workers: str) -> None:
    with limited("pids", {"pids.max": "24"}, {"pids.max": "24"}) as prefix:
        ended = run([*prefix, "env", f"WORKERS={workers}", *SERVE])
    assert ended.returncode == 3, ended.stdout
    assert "the limit of threads (pids.max of a container, TasksMax, ulimit -u) is too low" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


def test_hashes_are_bounded_by_the_quota_of_cores() -> None:
    one = {"cpu.cfs_period_us": "100000", "cpu.cfs_quota_us": "100000"}
    with limited("cpu", {"cpu.max": "100000 100000"}, one) as prefix:
        assert run([*prefix, *PRINT_HASHES]).stdout == "1\n"


def test_hashes_are_bounded_by_the_limit_of_memory() -> None:
    limit = str(100 * 2**20)
    with limited("memory", {"memory.max": limit}, {"memory.limit_in_bytes": limit}) as prefix:
        assert run([*prefix, *PRINT_HASHES]).stdout == "1\n"
