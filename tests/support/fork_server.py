"""Start services without importing them again: a process that has imported everything forks one for each start.

An import of the service takes half a second of a core; a fork takes a few milliseconds. Where the start itself is
tested, in process/, it is a real `python -m service`.
"""

import gc
import importlib
import json
import multiprocessing
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from argon2 import PasswordHasher

from service.users import passwords

PRELOADED = (
    "service.__main__",
    "service.extras.http.protocol",
    "uvicorn.__main__",
    # What FastAPI, anyio and uvicorn import as late as at the start.
    "anyio._backends._asyncio",
    "encodings.idna",
    "fastapi.telemetry._runtime",
    "pydantic.v1",
    "uvicorn.lifespan.on",
    "uvicorn.loops.uvloop",
    "uvicorn.protocols.websockets.auto",
)
CHEAP_HASHER = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
LARGEST_REQUEST = 1 << 20  # bytes, the environment included


class ForkedProcess:
    """A process of the fork server, with what `subprocess.Popen` has."""

    def __init__(self, replies: socket.socket) -> None:
        """Read its number from `replies`, and later its exit status."""
        self._replies = replies
        self.pid = int.from_bytes(replies.recv(4), "little")
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status, negative for a signal; raise subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            self._replies.settimeout(timeout)
            try:
                status = self._replies.recv(4)
            except (BlockingIOError, TimeoutError):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0) from None
            self._replies.close()
            assert status, "the fork server has ended"
            self.returncode = os.waitstatus_to_exitcode(int.from_bytes(status, "little"))
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks, while the block runs."""

    cheap_hashes = False  # whether the next ones hash passwords at little cost: theirs is not what is tested

    def __enter__(self) -> Self:
        self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                cwd=Path(__file__).parents[2], pass_fds=[theirs.fileno()],
            )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._requests.close()
        self._process.wait(30)

    def start(
        self, argv: Sequence[str], environment: Mapping[str, str], folder: Path, stdout: int, stderr: int
    ) -> ForkedProcess:
        """Run `python -m` with `argv` in `folder`, in a session of its own, with these descriptors as its streams."""
        replies, theirs = socket.socketpair()
        request = {
            "argv": argv, "environment": dict(environment), "folder": str(folder), "cheap_hashes": self.cheap_hashes
        }  # fmt: skip
        with theirs:
            socket.send_fds(self._requests, [json.dumps(request).encode()], [stdout, stderr, theirs.fileno()])
        return ForkedProcess(replies)

    def run(
        self, argv: Sequence[str], environment: Mapping[str, str], folder: Path, timeout: float
    ) -> subprocess.CompletedProcess[str]:
        """Run `python -m` with `argv` to its end, as subprocess.run does; raise TimeoutExpired after `timeout` s."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            process = self.start(argv, environment, folder, stdout.fileno(), stderr.fileno())
            try:
                status = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(argv, status, stdout.read(), stderr.read())


def main() -> None:
    """Fork for each request; in the child, run its module as `python -m` does."""
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in PRELOADED:
        importlib.import_module(name)
        if name.endswith("__main__"):
            del sys.modules[name]  # runpy warns of a main module that is imported already
    gc.freeze()
    command = serve(requests)
    if command is None:
        return
    multiprocessing.current_process().authkey = os.urandom(32)  # a key of its own, as in every new process
    os.environ.clear()
    os.environ.update(command["environment"])
    os.chdir(command["folder"])
    if command["cheap_hashes"]:
        passwords._hasher = CHEAP_HASHER  # noqa: SLF001 - no setting of the service makes its hashes weaker
    sys.argv = command["argv"]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)


def serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request. Return the request in the child, and None in the parent when there are no more."""
    ended, wakeup = socket.socketpair()
    ended.settimeout(0)
    wakeup.settimeout(0)
    signal.set_wakeup_fd(wakeup.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and these end the services
    running: dict[int, socket.socket] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        selector.register(ended, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is ended:
                    ended.recv(4096)
                    reap(running)
                    continue
                request, descriptors, _, _ = socket.recv_fds(requests, LARGEST_REQUEST, 3)
                if not request:
                    return None
                stdout, stderr, replies = *descriptors[:2], socket.socket(fileno=descriptors[2])
                pid = os.fork()
                if pid == 0:
                    become(stdout, stderr)
                    for each in (requests, ended, wakeup, replies, *running.values()):
                        each.close()
                    return json.loads(request)  # type: ignore[no-any-return]
                os.close(stdout)
                os.close(stderr)
                replies.sendall(pid.to_bytes(4, "little"))
                running[pid] = replies


def become(stdout: int, stderr: int) -> None:
    """Be a process as `subprocess.Popen` starts it: its own session, streams and signal handlers."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()
    os.dup2(stdout, 1)
    os.dup2(stderr, 2)
    os.close(stdout)
    os.close(stderr)


def reap(running: dict[int, socket.socket]) -> None:
    """Report the exit status of each child that has ended."""
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        with running.pop(pid) as replies, suppress(BrokenPipeError):
            replies.sendall(status.to_bytes(4, "little"))


if __name__ == "__main__":
    main()
