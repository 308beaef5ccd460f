"""Many clients: each sends one request at a time over its own connection, and obeys Retry-After."""

import asyncio
import random
import re
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import uvloop

USERS = 1000  # with the ids from 1
AGAIN = 1.0  # seconds, as Retry-After says; then as much again at random, so that they do not all come back together


@dataclass
class Load:
    """What the clients received: the seconds that each answer took, by status."""

    answers: dict[int, list[float]] = field(default_factory=dict)
    alive: list[float] = field(default_factory=list)  # seconds that /livez took, meanwhile
    seconds: float = 0.0

    def quantile(self, status: int, share: float) -> float:
        return quantile(self.answers[status], share)


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[int(share * (len(values) - 1))]


def goodput(url: str, size: int, seconds: int) -> float:
    """Return the answers of 200 per second that `size` clients of wrk get, which cost next to nothing themselves.

    The clients below, in Python, take a part of the cores and of their caches that grows with their number.
    """
    argv = ["wrk", "--threads=1", f"--connections={size}", f"--duration={seconds}", "--timeout=10"]
    script = f"--script={Path(__file__).with_name('load_clients.lua')}"
    output = subprocess.run([*argv, script, url, "--", str(USERS)], check=True, capture_output=True, text=True).stdout
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+)", output)
    assert found, output
    answers, refused, microseconds, broken = map(int, found.groups())
    assert not broken, output
    return (answers - refused) / microseconds * 1e6


def load(url: str, size: int, seconds: float) -> Load:
    """Start `size` clients within two seconds, then count for `seconds`."""
    return uvloop.run(_load(url, size, seconds))


async def _load(url: str, size: int, seconds: float) -> Load:
    found = Load(seconds=seconds)
    loop = asyncio.get_running_loop()
    ramp = 2.0
    counted = loop.time() + ramp
    until = counted + seconds
    clients = [await _connected(url, _Client(found.answers, counted)) for _ in range(size)]
    for number, client in enumerate(clients):
        loop.call_later(random.random() * ramp / 2 if number else 0, client.send)
    probe = await _connected(url, _Client({}, counted, b"/livez", once=True))
    while loop.time() < until:
        began = time.perf_counter()
        probe.send()
        await probe.answered.wait()
        probe.answered.clear()
        if loop.time() > counted:
            found.alive.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)
    lost = sum(client.gone.is_set() for client in clients)
    assert not lost, f"{lost} connections were closed by the service"
    for client in (*clients, probe):
        client.close()
    await asyncio.gather(*(client.gone.wait() for client in (*clients, probe)))
    return found


def new_clients(url: str, rate: float, seconds: float) -> list[float]:
    """Connect `rate` clients per second, with one request each; return the seconds that each took to be answered."""
    return uvloop.run(_new_clients(url, rate, seconds))


async def _new_clients(url: str, rate: float, seconds: float) -> list[float]:
    loop = asyncio.get_running_loop()

    async def come(after: float) -> float:
        await asyncio.sleep(after)
        began = time.perf_counter()
        client = await _connected(url, _Client({}, loop.time(), once=True))
        client.send()
        await client.answered.wait()
        client.close()
        return time.perf_counter() - began

    return await asyncio.gather(*(come(number / rate) for number in range(int(rate * seconds))))


async def _connected(url: str, client: "_Client") -> "_Client":
    there = urlsplit(url)
    await asyncio.get_running_loop().create_connection(lambda: client, there.hostname or "", there.port or 0)
    return client


class _Client(asyncio.Protocol):
    """One client. Its answers are small: what comes is the end of one exactly when it ends with a newline."""

    def __init__(
        self, answers: dict[int, list[float]], counted: float, path: bytes = b"", *, once: bool = False
    ) -> None:
        self._answers = answers
        self._counted = counted  # answers that come later count
        self._path = path
        self._once = once
        self._received = b""
        self._closed = False
        self.answered = asyncio.Event()
        self.gone = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is one, and does not say so
        self._loop = asyncio.get_running_loop()

    def send(self) -> None:
        if not self._closed:
            path = self._path or b"/users/%d" % random.randint(1, USERS)
            self._began = time.perf_counter()
            self._transport.write(b"GET " + path + b" HTTP/1.1\r\nHost: x\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(b"}\n"):
            return
        status, self._received = int(self._received[9:12]), b""
        if self._loop.time() > self._counted:
            self._answers.setdefault(status, []).append(time.perf_counter() - self._began)
        self.answered.set()
        if self._once:
            return
        if status == 503:
            self._loop.call_later(AGAIN * (1 + random.random()), self.send)
        else:
            self.send()

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        self.gone.set()

    def close(self) -> None:
        self._closed = True
        self._transport.close()
