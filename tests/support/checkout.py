"""A copy of the checkout: its `.env`, its data and its code are the test's own to change."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil  # type: ignore[import-untyped]

from tests.support.fork_server import ForkServer
from tests.support.postgres import FOLDER
from tests.support.process import CHECKOUT, Service, environment

PYTHON = (sys.executable, "-m", "service")


@dataclass(frozen=True)
class Checkout:
    """A folder with the service in it, and who runs it."""

    folder: Path
    run_as: tuple[str, ...] = ()  # what stands before each command
    settings: Mapping[str, str] = field(default_factory=dict)  # of every command
    fork_server: ForkServer | None = None  # runs its commands: the code is the tests' own, and no start is tested

    def run(
        self, command: str, settings: Mapping[str, str] | None = None, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m service <command>` to its end, and fail when that is not within `timeout` seconds."""
        variables = environment({"PORT": "0", **self.settings, **(settings or {})}, self.folder)
        if self.fork_server:
            return self.fork_server.run(["service", command], variables, self.folder, timeout)
        return subprocess.run(
            [*self.run_as, *PYTHON, command],
            cwd=self.folder, env=variables, capture_output=True, text=True, check=False, timeout=timeout,
        )  # fmt: skip

    def start(self, settings: Mapping[str, str] | None = None, command: str = "serve") -> Service:
        """Start `python -m service <command>`."""
        argv = [*self.run_as, *PYTHON, command]
        return Service({**self.settings, **(settings or {})}, checkout=self.folder, argv=argv)

    def processes(self) -> list[str]:
        """Return the command lines of everything that runs in the folder, or below it."""
        found = []
        for process in _processes(self.folder):
            with suppress(psutil.NoSuchProcess):  # it has ended since
                found.append(" ".join(process.cmdline()))
        return found


@contextmanager
def copied(below: str = "checkout") -> Iterator[Checkout]:
    """Yield a copy that is gone, with all that runs in it, when the block ends."""
    with TemporaryDirectory(prefix="checkout-", dir=FOLDER) as folder:
        base = Path(folder).resolve()
        checkout = base / below
        shutil.copytree(CHECKOUT / "service", checkout / "service")  # with its bytecode
        shutil.copy(CHECKOUT / "schema.sql", checkout)
        try:
            yield Checkout(checkout)
        finally:
            while left := _processes(base):  # a failed test's
                for process in left:
                    with suppress(psutil.NoSuchProcess):
                        process.kill()
                psutil.wait_procs(left, timeout=5)


def descendants(service: Service) -> list[int]:
    """Return the processes that `service` started."""
    return [process.pid for process in psutil.Process(service.process.pid).children(recursive=True)]


def workers(service: Service) -> list[int]:
    """Return the processes in which `service` answers requests."""
    found = []
    for child in psutil.Process(service.process.pid).children():
        with suppress(psutil.NoSuchProcess):  # a zombie is none either
            if "spawn_main" in " ".join(child.cmdline()):
                found.append(child.pid)
    return found


def gone(pids: list[int]) -> bool:
    """Tell whether none of the processes runs any more."""
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
                return False
    return True


def _processes(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.pid != os.getpid() and Path(process.cwd()).is_relative_to(folder):
                found.append(process)
    return found
