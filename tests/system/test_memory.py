"""What clients can make one worker keep, in its own memory and in the kernel's for its connections."""

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.bench import database
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.system.flood import Flood, drown

pytestmark = pytest.mark.alone

MOST = 512  # MiB
ENOUGH = 2 * MOST  # it ends there: the rest of the machine needs some too
SECONDS = 5
PATIENCE = 2  # seconds for /livez, when the clients have left

READ = b"GET /users/1 HTTP/1.1\r\nHost: x\r\n"
PAGE = b"GET /users?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"
SCRIPT = b"GET /docs/assets/swagger-ui-bundle.js HTTP/1.1\r\nHost: x\r\n\r\n"
CREATE = b"POST /users HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CHUNKED = CREATE + b"Transfer-Encoding: chunked\r\n\r\n"
TINY_HEADERS = b"a:b\r\n" * 13_000
TINY_LISTS = b"[" + b"[]," * 21_000
USER = b'"fname":"Ada","lname":"Lovelace","email":"ada@example.com","password":"correct horse"'


def sized(body: bytes, length: int = 0) -> bytes:
    """Return a POST with this body, of which more is to come when `length` is greater."""
    return CREATE + b"Content-Length: %d\r\n\r\n" % (length or len(body)) + body


LISTS = sized(b'{"x":' + TINY_LISTS + b"[]]," + USER + b"}")
BLANKS = sized(b"{" + USER + b" " * 65_000 + b"}")
LONG_PATH = b"GET /" + b"a" * 65_000
LONG_VALUE = READ + b"X-Long: " + b"a" * 65_000

FLOODS = {
    "4,000 unfinished heads of tiny headers": Flood(4000, READ + TINY_HEADERS),
    "4,000 unfinished heads with a long value": Flood(4000, LONG_VALUE),
    "4,000 unfinished paths": Flood(4000, LONG_PATH),
    "1,000 long paths, again and again": Flood(1000, b"", LONG_PATH + b" HTTP/1.1\r\nHost: x\r\n\r\n", reads=True),
    "1,000 long values, again and again": Flood(1000, b"", LONG_VALUE + b"\r\n\r\n", reads=True),
    "4,000 unfinished bodies": Flood(4000, sized(TINY_LISTS, 65_536)),
    "4,000 sign-ups of 64 KiB": Flood(4000, b"", BLANKS, reads=True),
    "4,000 bodies of tiny lists": Flood(4000, b"", LISTS, reads=True),
    "4,000 bodies of a gigabyte": Flood(4000, sized(b"", 2**30), b" " * 65_536, reads=True),
    "1,000 bodies of one-byte chunks": Flood(1000, CHUNKED, b"1\r\n \r\n" * 1000, reads=True),
    "1,000 unfinished trailers of tiny headers": Flood(1000, CHUNKED + b"1\r\n \r\n0\r\n" + TINY_HEADERS),
    "4,000 that never read a script": Flood(4000, b"", SCRIPT),
    "4,000 that never read a page": Flood(4000, b"", PAGE),
    "4,000 that never read a user": Flood(4000, b"", (READ + b"\r\n") * 100),
    "1,000 that send 32 requests at once": Flood(1000, b"", (READ + b"\r\n") * 32, reads=True),
    "4,000 that ask for nothing": Flood(4000, b""),
}


@pytest.fixture(scope="module")
def filled(cluster: Cluster) -> TestDatabase:
    return database.create(cluster, 1000)


@pytest.mark.parametrize("name", FLOODS)
def test_memory_stays_bounded_whatever_clients_do(
    filled: TestDatabase, record_figure: Callable[[str], None], name: str
) -> None:
    with Service(filled.environment) as service:
        address = urlsplit(service.url)
        port = address.port or 0
        peak = own = 0.0

        def look() -> bool:
            nonlocal peak, own
            memory = proportional_set_size(service.process.pid)
            if (total := memory + kernel_memory(port)) > peak:
                peak, own = total, memory
            return peak < ENOUGH

        sent = drown((address.hostname or "", port), FLOODS[name], SECONDS, look)
        figure = (
            f"{name} ({FLOODS[name].clients:,} clients, {sent / 2**20:.0f} MiB sent): {'more than ' * (peak >= ENOUGH)}"
            f"{peak:.0f} MiB, of which the worker's own {own:.0f};"
            f" /livez {seconds_to_answer(service)} after they left"
        )
        record_figure(figure)
        service.stop(signal.SIGKILL)  # it may be busy for long
        assert peak <= MOST, f"{figure}; the goal is {MOST}"


def seconds_to_answer(service: Service) -> str:
    began = time.monotonic()
    try:
        assert httpx.get(f"{service.url}/livez", timeout=PATIENCE).status_code == 200
    except httpx.TransportError:
        assert service.process.poll() is None, "the service ended"
        return f"does not answer within {PATIENCE} s"
    return f"answers {time.monotonic() - began:.1f} s"


def proportional_set_size(pid: int) -> float:
    """Return the MiB of a process, with its share of what it has in common with others."""
    found = re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) / 1024


def kernel_memory(port: int) -> float:
    """Return the MiB of the buffers of the server's side of all connections to `port`, accepted or not.

    Of ss's figures: r is received and not read, w is written and not taken, f is reserved for more, o and bl are
    options and a backlog.
    """
    listed = subprocess.run(
        ["ss", "--tcp", "--memory", "--numeric", "--no-header", f"sport = :{port}"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return sum(int(amount) for amount in re.findall(r"[(,](?:r|w|f|o|bl)(\d+)", listed)) / 2**20
