"""Nothing that becomes of standard output holds up a start, a request or the end."""

import fcntl
import json
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil  # type: ignore[import-untyped]
import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, free_port
from tests.support.process import CHECKOUT, environment
from tests.support.raw_http import connect
from tests.support.scrape import scrape_url

# It takes a thread: a request that takes none has a line only a hundred times a second.
REQUEST = f"GET /users/1 HTTP/1.1\r\nHost: x\r\nX-Request-ID: {'x' * 128}\r\n\r\n".encode()
BATCH = 100  # requests that one connection sends at once
FILLING = 4000  # requests whose lines are more than a worker keeps
DROPPED = "log_lines_dropped_total"


class Running:
    """A service whose standard streams are the test's own."""

    def __init__(self, process: subprocess.Popen[bytes], url: str) -> None:
        self.process = process
        self.url = url

    def answers(self, count: int) -> None:
        """See that `count` requests are answered, over one connection and so by one worker."""
        with connect(self.url) as peer:
            for _ in range(0, count, BATCH):
                size = min(count, BATCH)
                peer.sendall(REQUEST * size)
                received = b""
                while received.count(b'"status":404') < size:
                    part = peer.recv(65536)
                    assert part, "the service closed the connection"
                    received += part

    def is_alive(self) -> None:
        assert httpx.get(f"{self.url}/livez", timeout=20).status_code == 200

    def drops(self, after: int = 8) -> float:
        """Return how many lines were dropped, when as many requests more are answered."""
        self.answers(after)
        return scrape_url(self.url)[DROPPED, frozenset()]

    def ends(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0


@contextmanager
def running(
    database: TestDatabase, stdout: int, settings: Mapping[str, str] | None = None, redirected: str = ""
) -> Iterator[Running]:
    """Have a service that writes to `stdout`, and to standard error too, or that a shell has `redirected`."""
    port = free_port()
    process = subprocess.Popen(
        ["/bin/sh", "-c", f'exec "$0" -m service serve {redirected}', sys.executable],
        cwd=CHECKOUT,
        env=environment({**database.environment, "PORT": str(port), "LOG_FORMAT": "json", **(settings or {})}),
        stdout=stdout,
        stderr=stdout,
        start_new_session=True,
    )
    url = f"http://127.0.0.1:{port}"

    def ready() -> bool:
        assert process.poll() is None, "the service ended"
        try:
            return httpx.get(f"{url}/readyz", timeout=20).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(ready, "the service is ready")
        yield Running(process, url)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(10)


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


@pytest.fixture(params=["pipe", "terminal"])
def ends_of(request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """Where the log is read, and where it is written."""
    reader, writer = os.pipe() if request.param == "pipe" else pty.openpty()
    yield reader, writer
    for end in (reader, writer):
        with suppress(OSError):  # the test has closed it
            os.close(end)


@pytest.mark.parametrize(("ends_of", "workers"), [("pipe", "2"), ("terminal", "1")], indirect=["ends_of"])
def test_a_reader_that_stalls_holds_nothing(
    ends_of: tuple[int, int], workers: str, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with running(database, ends_of[1], {"WORKERS": workers}) as service:
        service.answers(FILLING)
        service.is_alive()
        until(lambda: service.drops(BATCH), "lines are dropped")
        service.is_alive()
        began = time.monotonic()
        service.ends()
    record_figure(
        f"SIGTERM with a log that nobody reads, {workers} workers: ended after {time.monotonic() - began:.1f} s"
    )


def test_a_pipe_that_is_full_already_does_not_hold_the_start(database: TestDatabase) -> None:
    reader, writer = os.pipe()
    os.write(writer, b"x" * fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ))
    with running(database, writer) as service:
        service.is_alive()
        service.ends()
    os.close(reader)
    os.close(writer)


@pytest.mark.parametrize("blocking", [True, False])
def test_after_a_stall_the_log_counts_the_missing_lines_and_all_others_are_whole(
    *, blocking: bool, database: TestDatabase
) -> None:
    """Also when somebody else who has the pipe makes it non-blocking."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 8192)
    received: list[bytes] = []

    def read() -> None:
        while part := os.read(reader, 1000):
            received.append(part)

    def lines() -> list[dict[str, Any]]:
        return [json.loads(line) for line in b"".join(received).decode().splitlines() if line.endswith("}")]

    def missing() -> int:
        gaps = re.findall(rb'"([\d,]+) lines were dropped', b"".join(received))
        return sum(int(gap.replace(b",", b"")) for gap in gaps)

    with running(database, writer, {"WORKERS": "2"}) as service:
        os.set_blocking(writer, blocking)
        service.answers(FILLING)
        until(lambda: service.drops(BATCH), "lines are dropped")
        dropped = service.drops()
        threading.Thread(target=read, daemon=True).start()
        until(lambda: missing() >= dropped, "the gap is told of")
        service.answers(8)
        service.ends()
    os.close(writer)
    until(lambda: b"".join(received).endswith(b"\n"), "the last line is whole")
    assert len(lines()) == b"".join(received).count(b"\n"), "each line is one object"


def test_a_reader_that_dies_or_a_terminal_that_is_closed_disturbs_nobody(
    ends_of: tuple[int, int], database: TestDatabase
) -> None:
    with running(database, ends_of[1]) as service:
        os.close(ends_of[0])
        service.answers(80)
        until(service.drops, "the lines are counted")
        began = time.monotonic()
        service.ends()
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("redirected", "workers"),
    [(">/dev/full 2>&1", "1"), (">&-", "1"), ("2>&-", "1"), ("<&-", "2"), ("<&- >&- 2>&-", "2")],
)
def test_it_serves_with_streams_that_are_closed_or_full(redirected: str, workers: str, database: TestDatabase) -> None:
    with running(database, subprocess.DEVNULL, {"WORKERS": workers}, redirected) as service:
        service.answers(80)
        for process in (own := psutil.Process(service.process.pid), *own.children(recursive=True)):
            streams = [str(Path(f"/proc/{process.pid}/fd/{number}").readlink()) for number in range(3)]
            assert all(stream.startswith("/dev/") for stream in streams), "nothing else has taken its number"
        if "full" in redirected:
            until(service.drops, "the lines are counted")
        service.ends()


HAPPENS = {
    "a thread fails": "import threading; threading.Thread(target=lambda: 1 / 0).start()",
    "a finalizer fails": "type('Broken', (), {'__del__': lambda self: 1 / 0})()",
    "a warning": "import warnings; warnings.warn('ZeroDivisionError is near')",
    "a message that cannot be formatted": "logging.getLogger().warning('%d ZeroDivisionError', 'x')",
    "the end of the main thread": "1 / 0",
}


@pytest.mark.parametrize("write", ["WRITER.write", "log.print_line"])
@pytest.mark.parametrize("what", HAPPENS)
def test_what_python_would_write_to_standard_error_is_one_line_of_the_log(what: str, write: str) -> None:
    ended = python(f"log.configure('json', {write}); {HAPPENS[what]}")
    (line,) = ended.stdout.splitlines()
    assert "ZeroDivisionError" in str(json.loads(line))
    assert ended.stderr == ""


def test_a_fork_writes_its_own_lines_and_no_others_twice() -> None:
    ended = python(
        "import os; log.configure('text', WRITER.write); info = logging.getLogger().info;"
        "info('before'); child = os.fork(); info('child' if not child else 'parent'); child and os.waitpid(child, 0)"
    )
    assert sorted(re.findall(r"\w+$", ended.stdout, re.MULTILINE)) == ["before", "child", "parent"]


def python(code: str) -> subprocess.CompletedProcess[str]:
    code = f"import logging; from service.telemetry import log; from service.extras.log_writer import WRITER; {code}"
    return subprocess.run([sys.executable, "-c", code], cwd=CHECKOUT, capture_output=True, text=True, check=False)
