"""What control groups leave to the process, from their files as the kernel shows them."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from service.machine import usable_cores, usable_memory
from service.users.passwords import MAX_HASHES, concurrent_hashes

MIB = 2**20
UNLIMITED = str(2**63 - 4096)  # in version 1


def machine(root: Path, cgroup: str, files: Mapping[str, str]) -> Path:
    """Make /proc/self/cgroup and the files below /sys/fs/cgroup in `root`."""
    tree = {"proc/self/cgroup": cgroup, **{f"sys/fs/cgroup/{name}": content for name, content in files.items()}}
    for name, content in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{content}\n")
    return root


V1 = "5:memory:{path}\n3:cpu,cpuacct:{path}\n1:name=systemd:{path}\n0::{path}"


@pytest.mark.parametrize(
    ("cgroup", "files", "cores"),
    [
        ("0::/", {"cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, 64),
        ("0::/", {}, 64),
        ("0::/", {"cpu.max": "150000 100000"}, 1),
        ("0::/", {"cpu.max": "20000 100000"}, 1),
        ("0::/", {"cpu.max": "9900000 100000"}, 64),
        ("0::/pod/service", {"pod/cpu.max": "400000 100000", "pod/service/cpu.max": "max 100000"}, 4),
        ("0::/pod/service", {"pod/cpu.max": "400000 100000", "pod/service/cpu.max": "300000 100000"}, 3),
        ("0::/../other", {"cpu.max": "500000 100000"}, 5),
        (V1.format(path="/"), {"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"}, 2),
        (V1.format(path="/"), {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        (V1.format(path="/docker/1"), {"cpu/cpu.cfs_quota_us": "75000", "cpu/cpu.cfs_period_us": "25000"}, 3),
        (V1.format(path="/a"), {"cpu/a/cpu.cfs_quota_us": "700000", "cpu/a/cpu.cfs_period_us": "100000"}, 7),
        ("", {"cpu.max": "200000 100000"}, 64),
    ],
)
def test_a_quota_bounds_the_cores(tmp_path: Path, cgroup: str, files: dict[str, str], cores: int) -> None:
    assert usable_cores(64, machine(tmp_path, cgroup, files)) == cores


@pytest.mark.parametrize(
    ("cgroup", "files", "mib"),
    [
        ("0::/", {"memory.max": str(30 * MIB)}, 30),
        ("0::/a/b", {"a/memory.max": str(40 * MIB), "a/b/memory.max": "max"}, 40),
        (V1.format(path="/"), {"memory/memory.limit_in_bytes": str(50 * MIB)}, 50),
        (V1.format(path="/docker/1"), {"memory/memory.limit_in_bytes": str(60 * MIB)}, 60),
        (V1.format(path="/a"), {"memory/a/memory.limit_in_bytes": str(70 * MIB)}, 70),
    ],
)
def test_a_limit_bounds_the_memory(tmp_path: Path, cgroup: str, files: dict[str, str], mib: int) -> None:
    assert usable_memory(machine(tmp_path, cgroup, files)) == mib * MIB


@pytest.mark.parametrize("files", [{"memory.max": "max"}, {"memory/memory.limit_in_bytes": UNLIMITED}, {}])
def test_without_a_limit_the_memory_is_the_machines(tmp_path: Path, files: dict[str, str]) -> None:
    total = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    assert usable_memory(machine(tmp_path, V1.format(path="/"), files)) == pytest.approx(total, rel=0.01)


def test_a_platform_without_control_groups_has_all_its_cores() -> None:
    assert usable_cores(64, Path("/nowhere")) == 64


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("workers", [1, 2, 512])
def test_hashes_leave_a_thread_to_other_requests(workers: int, threads: int) -> None:
    assert concurrent_hashes(workers, threads) == max(1, min(MAX_HASHES // workers, threads - 1))
    assert concurrent_hashes(1, 10_000) == MAX_HASHES
