"""Namespaces of the kernel: a network and mounts of the run's own, which are gone with its last process."""

import ctypes
import os
import shutil
import subprocess
from types import TracebackType
from typing import Self

NEEDED = {  # program: package
    "chromium": "chromium",
    "go": "golang-go",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "java": "default-jre-headless",
    "mount": "mount",
    "npm": "npm",
    "nginx": "nginx-light",
    "pgbouncer": "pgbouncer",
    "promtool": "prometheus",
    "setpriv": "util-linux",
    "systemd-analyze": "systemd",
    "wrk": "wrk",
}
CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000  # <linux/sched.h>; os.unshare() came with Python 3.12


def missing() -> str:
    """Say what this machine lacks, in one sentence; nothing when it has it all."""
    packages = sorted({package for program, package in NEEDED.items() if shutil.which(program) is None})
    needs = ["to be run as root"] if os.geteuid() else []
    needs += [f"`apt-get install {' '.join(packages)}`"] if packages else []
    return f"tests/system needs {' and '.join(needs)}: see .ci/run" if needs else ""


def enter() -> None:
    """Move this process into a network and mounts of its own: nothing done there is seen, or left, outside."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "tests/system needs the right to make namespaces: CAP_SYS_ADMIN")
    run("mount", "--make-rprivate", "/")
    run("mount", "-t", "tmpfs", "tmpfs", "/run")  # where `ip netns` keeps its names
    run("ip", "link", "set", "lo", "up")


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


class Detour:
    """A machine for the service, and the router between it and PostgreSQL, which can be told to drop every packet.

    the load, here --- the service's machine --- the router --- PostgreSQL, here
           10.0.0.1     10.0.0.2    10.0.1.2      .1    .1       10.0.2.2
    """

    load, service, server = "10.0.0.1", "10.0.0.2", "10.0.2.2"
    far_end = "10.0.1.2"  # where PostgreSQL sees the service
    prefix = ("ip", "netns", "exec", "client")  # of a command that is to run on the service's machine

    def __enter__(self) -> Self:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove()

    def drop(self) -> None:
        """Let every packet between the service and PostgreSQL vanish, without a word to either."""
        for address in (self.far_end, self.server):
            run("ip", "-n", "router", "route", "add", "blackhole", address)

    def forward(self) -> None:
        """Pass packets on again."""
        for address in (self.far_end, self.server):
            run("ip", "-n", "router", "route", "del", "blackhole", address)

    def _build(self) -> None:
        for name in ("client", "router"):
            run("ip", "netns", "add", name)
            run("ip", "-n", name, "link", "set", "lo", "up")
        _cable("", self.load, "client", self.service)
        _cable("client", self.far_end, "router", "10.0.1.1")
        _cable("router", "10.0.2.1", "", self.server)
        run("ip", "-n", "client", "route", "add", "10.0.2.0/24", "via", "10.0.1.1")
        run("ip", "route", "add", "10.0.1.0/24", "via", "10.0.2.1")
        run("ip", "netns", "exec", "router", "sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")

    def _remove(self) -> None:
        for name in ("client", "router"):
            for what in (
                ["link", "del", f"to-{name}"],
                ["netns", "del", name],
            ):  # the rest goes with it, some time later
                subprocess.run(["ip", *what], capture_output=True, check=False)


def _cable(left: str, left_address: str, right: str, right_address: str) -> None:
    """Join two machines, "" is this one; each names its end after the other."""
    inside = {name: ["-n", name] if name else [] for name in (left, right)}
    ends = (left, f"to-{right or 'here'}", left_address), (right, f"to-{left or 'here'}", right_address)
    other = ["netns", right] if right else ["netns", str(os.getpid())]
    run("ip", *inside[left], "link", "add", ends[0][1], "type", "veth", "peer", "name", ends[1][1], *other)
    for name, end, address in ends:
        run("ip", *inside[name], "address", "add", f"{address}/24", "dev", end)
        run("ip", *inside[name], "link", "set", end, "up")
