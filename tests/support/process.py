"""The service as a user starts it: a real process, spoken to over a real socket."""

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Self

import httpx

from service.settings import Settings
from tests.support.fork_server import ForkedProcess, ForkServer
from tests.support.polling import until

CHECKOUT = Path(__file__).parents[2]
HOSTS = "x,test,soak"  # the Host of requests that tests write as bytes


def environment(settings: Mapping[str, str], checkout: Path = CHECKOUT) -> dict[str, str]:
    """Return the machine's environment with these settings and no other, not even those of a developer's .env."""
    ours = {name.upper() for name in Settings.model_fields}
    theirs = {name: value for name, value in os.environ.items() if name not in ours}
    blank = dict.fromkeys(ours, "") if checkout == CHECKOUT else {}  # a blank one is as good as unset
    return theirs | blank | {"LOG_FORMAT": "text", "ALLOWED_HOSTS": HOSTS} | dict(settings)


class Service:
    """`python -m service serve` (or another command) on a free port, until the `with` block ends."""

    fork_server: ClassVar[ForkServer | None] = None  # where the start itself is not tested

    def __init__(
        self,
        settings: Mapping[str, str],
        command: str = "serve",
        checkout: Path = CHECKOUT,
        argv: Sequence[str] = (),
    ) -> None:
        """Start it; `settings` are environment variables, `argv` is a command line in place of the usual one."""
        self._output = tempfile.NamedTemporaryFile("w+", prefix="service-", suffix=".log")  # noqa: SIM115
        argv = argv or [sys.executable, "-m", "service", command]
        variables = environment({"PORT": "0", **settings}, checkout)
        self.process: subprocess.Popen[bytes] | ForkedProcess
        if self.fork_server and checkout == CHECKOUT and argv[:2] == [sys.executable, "-m"]:
            output = self._output.fileno()
            self.process = self.fork_server.start(argv[2:], variables, CHECKOUT, output, output)
        else:
            self.process = subprocess.Popen(
                argv, cwd=checkout, env=variables,
                stdout=self._output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip

    def __enter__(self) -> Self:
        try:
            self.client = httpx.Client(base_url=self.url, timeout=30)
            until(self._ready, f"the service is ready; its output:\n{self.log}")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.client.close()
        self.stop()

    def _ready(self) -> bool:
        assert self.process.poll() is None, f"the service ended:\n{self.log}"
        try:
            return self.client.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def log(self) -> str:
        """Everything it wrote so far."""
        return self._log if self._output.closed else Path(self._output.name).read_text()

    @property
    def url(self) -> str:
        found = until(
            lambda: re.search(r"running on (http://\S+)", self.log) or self.process.poll() is not None, "a URL"
        )
        assert isinstance(found, re.Match), f"the service ended:\n{self.log}"
        return found[1]

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Send it a signal, unless it has ended, and return its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        status = self.process.wait(30)
        self._log = self.log
        self._output.close()
        return status


def run_command(settings: Mapping[str, str], *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """Run `python -m service` with `arguments` to its end; a module that uses `forked` has it forked."""
    variables = environment({"PORT": "0", **settings})
    if Service.fork_server:
        return Service.fork_server.run(["service", *arguments], variables, CHECKOUT, timeout)
    return subprocess.run(
        [sys.executable, "-m", "service", *arguments],
        cwd=CHECKOUT, env=variables, capture_output=True, text=True, check=False, timeout=timeout,
    )  # fmt: skip
