"""Clients that ignore Retry-After: each sends its next request as soon as it has an answer. They are wrk's."""

import json
import re
import resource
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

SCRIPT = Path(__file__).with_name("rude.lua")
USERS = 200_000  # with the ids from 1: more than are asked for while one answer is on its way
READ = "GET /users/{id} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@dataclass(frozen=True)
class Counts:
    """What the clients got. Times are milliseconds, of the answers that show a user."""

    good: int  # answers of 2xx
    other: int  # answers of any other status
    broken: int  # connections that could not be made, or broke; the uncounted ones at the start included
    seconds: float
    p50: float
    p99: float

    @property
    def goodput(self) -> float:
        """Good answers per second."""
        return self.good / self.seconds if self.seconds > 0 else 0.0


class RudeClients:
    """`count` clients that send `request` until the `with` block ends; `{id}` in it becomes the id of a user.

    What they get in the first `ramp` seconds is not counted. A client whose connection is closed connects again.
    """

    def __init__(self, url: str, request: str, count: int, *, ramp: float = 0.0) -> None:
        allow_open_files()
        argv = ["wrk", "--threads=1", f"--connections={count}", "--duration=600", "--timeout=60"]
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115 - read when they have stopped
        self._process = subprocess.Popen(
            [*argv, f"--script={SCRIPT}", url, "--", request, str(USERS), str(ramp)],
            stdout=self._output, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    def stop(self) -> Counts:
        """Stop them all, and return what they got."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(20)
        self._output.seek(0)
        output = self._output.read()
        found = re.search(r"RESULT (\{.*\})", output)
        assert found, f"wrk failed:\n{output}"
        return Counts(**json.loads(found[1]))


def drive(url: str, request: str, count: int, seconds: float, *, ramp: float = 0.3) -> Counts:
    """Have such clients for `ramp` + `seconds`; return what they got in the latter."""
    with RudeClients(url, request, count, ramp=ramp) as clients:
        time.sleep(ramp + seconds)
        return clients.stop()


def allow_open_files() -> None:
    """Raise this process's limit of open files, which its children inherit, as far as it may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
