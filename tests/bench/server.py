"""A contender that runs: started, watched for its use of the processors, stopped or started anew."""

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx
import psutil  # type: ignore[import-untyped]

from tests.bench.contenders import Contender
from tests.bench.database import url
from tests.support.polling import until
from tests.support.postgres import TestDatabase, free_port
from tests.support.process import CHECKOUT, environment

# Every client shall be served, as the peers do: by default a request waits for 2 s at most.
SETTINGS = {
    "LOG_FORMAT": "json",  # as it is unless told otherwise
    "QUEUE_LENGTH": "1000",
    "QUEUE_WAIT": "50",
    "REQUEST_DEADLINE": "60",
    "GRACEFUL_SHUTDOWN_TIMEOUT": "70",
}

QUIET = 0.2  # cores: a server that uses more is still at work


def processor_seconds(pid: int) -> float:
    """Return what the process and its children used so far, those that have ended included."""
    total = 0.0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in (parent, *parent.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                used = process.cpu_times()
                total += used.user + used.system + used.children_user + used.children_system
    return total


class Server:
    """One contender over one database, until the `with` block ends."""

    def __init__(
        self,
        contender: Contender,
        database: TestDatabase,
        settings: Mapping[str, str] | None = None,
        *,
        core: int | None = None,
    ) -> None:
        """Start nothing yet; `settings` are ours, beside those of every run; it is kept to `core`, if any."""
        self.contender = contender
        self._database = database
        self._prefix = [] if core is None else ["taskset", "--cpu-list", str(core)]
        self._settings = {**SETTINGS, **contender.settings, **(settings or {})}

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start it and wait for its first answer."""
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.NamedTemporaryFile("w+", prefix=f"bench-{self.contender.name}-", suffix=".log")  # noqa: SIM115
        own = {"PORT": str(port), **self._settings} if self.contender.ours else {}
        env = environment({**self._database.environment, **own})
        if not self.contender.ours:
            env["DATABASE_URL"] = url(self._database)
        self.process = subprocess.Popen(
            [*self._prefix, *self.contender.argv(port)],
            cwd=CHECKOUT, env=env, stdout=self._log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            until(self.answers, f"{self.contender.name} answers")
        except BaseException as exc:
            exc.add_note(self.log[-4000:])
            self.stop()
            raise

    @property
    def log(self) -> str:
        """Everything it wrote since it was started."""
        return Path(self._log.name).read_text()

    def answers(self) -> bool:
        """Tell whether it answers within a second."""
        assert self.process.poll() is None, f"{self.contender.name} ended"
        try:
            return httpx.get(f"{self.url}/users/1", timeout=1).is_success
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        """End it, however it resists."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(5)
        self._log.close()

    def settle(self, patience: float = 5.0) -> None:
        """Wait until it has done what it was last asked; start it anew when it does not come to an end."""
        end = time.monotonic() + patience
        used = self.processor_seconds()
        while time.monotonic() < end and self.process.poll() is None:
            time.sleep(0.1)
            before, used = used, self.processor_seconds()
            if used - before < QUIET * 0.1 and self.answers():
                return
        self.stop()
        self.start()

    def processor_seconds(self) -> float:
        """Return what it used so far, all its processes together."""
        return processor_seconds(self.process.pid)
