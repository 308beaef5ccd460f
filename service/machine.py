"""What the kernel lets this process use of the machine: a container has less than the machine around it.

Control groups have two forms (cgroups(7)): version 2 keeps all controllers in one tree, version 1 one tree for each. A
limit of a group holds for all groups below it.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def usable_cores(allowed: int, root: Path = ROOT) -> int:
    """Return how many of the `allowed` cores the quotas of the control groups leave to this process, at least 1."""
    cores = float(allowed)
    for group in _groups("cpu", root):
        limit = _read(group / "cpu.max") or f"{_read(group / 'cpu.cfs_quota_us')} {_read(group / 'cpu.cfs_period_us')}"
        quota, _, period = limit.partition(" ")  # microseconds; without a limit, the quota is "max" or -1
        if quota.isdecimal():
            cores = min(cores, int(quota) / int(period))
    return max(1, int(cores))


def usable_memory(root: Path = ROOT) -> int:
    """Return how many bytes the machine has, or the control groups leave to this process."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for group in _groups("memory", root):
        limit = _read(group / "memory.max") or _read(group / "memory.limit_in_bytes")
        if limit.isdecimal():
            memory = min(memory, int(limit))
    return memory


def check_threads(count: int) -> None:
    """Start `count` threads and end them. Raises RuntimeError when there may not be so many more."""
    end = threading.Event()
    try:
        for _ in range(count):
            threading.Thread(target=end.wait, daemon=True).start()
    finally:
        end.set()


def end_with_parent(signal_number: int) -> None:
    """Send this process a signal when the process that started it has ended, killed or not; do nothing without one."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os.kill(os.getpid(), signal_number)

    threading.Thread(target=wait, name="parent-watch", daemon=True).start()


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, as far as they are visible in its container."""
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys" / "fs" / "cgroup" / (controller if controllers else "")
        for group in (top / path.lstrip("/"), *(top / path.lstrip("/")).parents):
            yield group
            if group == top:
                break


def _read(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""
