"""Drives a server with wrk, in a closed loop: each connection sends its next request when it has its answer.

So the percentiles are those of clients who wait, and a server that stalls is asked less meanwhile; wrk mends
that in part, by counting for a long answer those that would have waited behind it.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

SCRIPT = Path(__file__).with_name("wrk.lua")
MISSING = "wrk is needed to drive the servers: apt-get install wrk"
LONGEST = 60  # seconds that an answer may take before wrk calls it late


@dataclass(frozen=True)
class Load:
    """What to ask: a workload's name, over so many connections, of a table with so many users."""

    workload: str
    connections: int
    users: int


@dataclass(frozen=True)
class Driven:
    """What came back. Times are milliseconds."""

    answers: int  # of any status
    seconds: float
    refused: int  # answers with a status of 400 or more
    broken: int  # connections that could not be made, or broke
    late: int
    p50: float
    p99: float

    @property
    def good(self) -> int:
        """How many requests were carried out."""
        return self.answers - self.refused

    @property
    def rate(self) -> float:
        """Good answers per second."""
        return self.good / self.seconds if self.seconds else 0.0

    @property
    def errors(self) -> int:
        return self.refused + self.broken + self.late


def require() -> None:
    """End with one sentence when wrk is not there."""
    if not shutil.which("wrk"):
        sys.exit(MISSING)


def drive(url: str, load: Load, seconds: float, seed: int) -> Driven:
    """Send `load` to the server for so many seconds. Never takes much longer."""
    argv = ["wrk", "--threads=1", f"--connections={load.connections}", "--duration=600", f"--timeout={LONGEST}"]
    process = subprocess.Popen(
        [*argv, f"--script={SCRIPT}", url, "--", load.workload, str(load.users), str(seed)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        process.send_signal(signal.SIGINT)  # its --duration knows whole seconds only
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    if "unable to connect" in output:
        return Driven(answers=0, seconds=seconds, refused=0, broken=load.connections, late=0, p50=0, p99=0)
    found = re.search(r"RESULT (\{.*\})", output)
    if not found:
        raise RuntimeError(f"wrk said nothing of use:\n{output}")
    said = json.loads(found[1])
    return Driven(
        answers=said["answers"],
        seconds=said["microseconds"] / 1e6,
        refused=said["refused"],
        broken=said["connect"] + said["broken"],
        late=said["late"],
        p50=said["p50"] / 1000,
        p99=said["p99"] / 1000,
    )
