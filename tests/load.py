"""`make load`: a crowd for the service that runs on this machine, to be watched at /pool.

A few clients, then far more than there are threads and places in the queue, then a few again. It is bounded in
clients, in requests and in time, speaks to this machine only, and deletes the users that it made.
"""

import argparse
import asyncio
import ipaddress
import json
import random
import resource
import sys
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import quantiles
from typing import Any, NoReturn
from urllib.parse import urlsplit

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from service import settings as environment

FEW = 4  # clients
THINKING = 0.02  # seconds between two requests of a client, on average, while there are few
CROWD = 2.5  # times what the service has threads and places in its queues
MOST = 1000  # clients
SECONDS = 40.0
PATIENCE = 15.0  # seconds for an answer: longer than the service's own deadline of 10
LOOK = 0.2  # seconds between two looks at the progress

# Of a hundred requests. A sign-up takes 19 ms of a core: more of them, and the crowd would measure hashing.
PAGES, SIGN_UPS, UNKNOWN = 10.0, 0.3, 2.0


@dataclass
class Phase:
    """Some clients for some seconds, and what they met."""

    name: str
    clients: int
    seconds: float
    began: float = 0.0
    accepted: list[float] = field(default_factory=list)  # seconds each
    refused: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)

    def note(self, status: int, code: str, seconds: float) -> None:
        """Note an answer; one that is 404 or 409 was served as well."""
        if code == "overloaded":
            self.refused.append(seconds)
        elif status >= 500:
            self.failed[f"{status} {code}"] += 1
        else:
            self.accepted.append(seconds)


class Connection:
    """One connection that is kept open, by one client, for one request at a time."""

    def __init__(self, host: str, port: int) -> None:
        """Connect with the first request."""
        self._address = host, port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Return the status and the JSON of the answer. Raises OSError or TimeoutError."""
        content = b"" if body is None else json.dumps(body).encode()
        kind = f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n" if content else ""
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = self._streams = self._streams or await asyncio.open_connection(*self._address)
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{kind}\r\n".encode() + content)
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = head.partition("content-length: ")[2].partition("\r\n")[0]
                answer = await reader.readexactly(int(length or 0))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as exc:
            self.close()
            raise exc if isinstance(exc, OSError) else ConnectionResetError from exc
        if "connection: close" in head:
            self.close()
        return int(head.split(" ", 2)[1]), json.loads(answer) if answer else None

    def close(self) -> None:
        """End it; the next request opens another."""
        if self._streams:
            self._streams[1].close()
            self._streams = None


class Crowd:
    """The clients, one phase after the other."""

    def __init__(self, host: str, port: int, phases: list[Phase]) -> None:
        """Ask nothing yet."""
        self._address = host, port
        self.phases = phases
        self._known: list[int] = []
        self._made: list[int] = []

    async def run(self, progress: Progress | None) -> None:
        """Go through the phases, and leave no user behind, also when cancelled."""
        self._known = [user["id"] for user in (await Connection(*self._address).ask("GET", "/users?limit=1000"))[1]]
        try:
            for phase in self.phases:
                phase.began = time.monotonic()
                clients = [asyncio.create_task(self._client(phase)) for _ in range(phase.clients)]
                try:
                    await _shown(phase, clients, progress)
                finally:
                    for client in clients:
                        client.cancel()
                    await asyncio.wait(clients)
        finally:
            await asyncio.shield(self._tidy())

    async def _client(self, phase: Phase) -> None:
        connection = Connection(*self._address)
        end = phase.began + phase.seconds
        few = phase.clients <= FEW
        try:
            await asyncio.sleep(random.uniform(0, min(1.0, phase.seconds / 4)))  # they do not all come at once
            while time.monotonic() < end:
                began = time.monotonic()
                try:
                    status, answer = await connection.ask(*self._request())
                except OSError as exc:
                    phase.failed[type(exc).__name__] += 1
                    await asyncio.sleep(LOOK)
                    continue
                code = answer.get("code", "") if isinstance(answer, dict) else ""
                phase.note(status, code, time.monotonic() - began)
                if status == 201:
                    self._made.append(answer["id"])
                if status == 503:
                    await asyncio.sleep(random.uniform(0.5, 1.5))  # Retry-After, and not all at the same time
                elif few:
                    await asyncio.sleep(random.expovariate(1 / THINKING))
        finally:
            connection.close()

    def _request(self) -> tuple[str, str] | tuple[str, str, Any]:
        dice = random.uniform(0, 100)
        if dice < SIGN_UPS:
            return "POST", "/users", _somebody()
        if dice < SIGN_UPS + PAGES:
            return "GET", f"/users?limit=100&after={random.choice(self._known or [1]) - 1}"
        if dice < SIGN_UPS + PAGES + UNKNOWN or not self._known:
            return "GET", f"/users/{random.randrange(2**62, 2**63)}"
        return "GET", f"/users/{random.choice(self._known)}"

    async def _tidy(self) -> None:
        connection = Connection(*self._address)
        try:
            for user_id in self._made:
                for _ in range(round(PATIENCE / LOOK)):
                    if (await connection.ask("DELETE", f"/users/{user_id}"))[0] != 503:
                        break
                    await asyncio.sleep(LOOK)
        finally:
            connection.close()


def _somebody() -> dict[str, str]:
    name = f"load-{random.getrandbits(64):016x}"
    return {"fname": "Load", "lname": "Test", "email": f"{name}@example.com", "password": f"{name} password"}


async def _shown(phase: Phase, clients: Iterable[asyncio.Task[None]], progress: Progress | None) -> None:
    """Show how it goes until all clients have gone home."""
    bar = progress.add_task(phase.name, total=phase.seconds, told="") if progress else None
    pending = set(clients)
    while pending:
        _, pending = await asyncio.wait(pending, timeout=LOOK)
        if progress and bar is not None:
            took = time.monotonic() - phase.began
            told = f"{phase.clients:4} clients  {len(phase.accepted):7,} accepted  {len(phase.refused):6,} refused"
            failed = f"  {phase.failed.total():,} failed" if phase.failed else ""
            progress.update(bar, completed=min(took, phase.seconds) if pending else phase.seconds, told=told + failed)


def summary(phases: Iterable[Phase]) -> Table:
    """Return the table of what was measured."""
    table = Table("", "clients", "accepted", "a second", "p50 ms", "p99 ms", "refused", "p99 ms ", "failed", box=None)
    for column in table.columns[1:]:
        column.justify = "right"
    for phase in phases:
        table.add_row(
            phase.name,
            f"{phase.clients:,}",
            f"{len(phase.accepted):,}",
            f"{len(phase.accepted) / phase.seconds:,.0f}",
            _milliseconds(phase.accepted, 50),
            _milliseconds(phase.accepted, 99),
            f"{len(phase.refused):,}",
            _milliseconds(phase.refused, 99),
            ", ".join(f"{number:,} x {kind}" for kind, number in phase.failed.items()) or "0",
        )
    return table


def _milliseconds(seconds: list[float], percent: int) -> str:
    if len(seconds) < 2:
        return "-"
    return f"{quantiles(seconds, n=100)[percent - 1] * 1000:,.1f}"


def _address(url: str | None) -> tuple[str, int]:
    """Return where the service is; leave with one line when that is not this machine."""
    try:
        settings = environment.load()
        parts = urlsplit(url or f"http://{settings.host}:{settings.port}")
        host, port = parts.hostname or "", parts.port or 80
    except (environment.SettingsError, ValueError) as exc:
        _leave(str(exc))
    if host in {"localhost", "0.0.0.0", "::"}:  # the last two are to listen on
        host = "127.0.0.1"
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here:
        _leave(f"{host} is not this machine: `make load` asks nobody else")
    return host, port


def _leave(words: str) -> NoReturn:
    print(words, file=sys.stderr)
    sys.exit(2)


async def _crowd(host: str, port: int, seconds: float, clients: int | None) -> Crowd:
    try:
        status, pool = await Connection(host, port).ask("GET", "/pool")
    except (OSError, TimeoutError):
        _leave(f"nobody answers at http://{host}:{port}: start the service with `make run` first")
    if clients is None:
        workers = pool["workers"] if status == 200 else []
        room = sum(worker["threads"]["size"] + worker["queue"]["length"] for worker in workers)
        clients = round(CROWD * (room or 264))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST + 100  # files; a Mac gives 256 unless asked
    soft = soft if soft >= wanted or soft == resource.RLIM_INFINITY else min(wanted, hard if hard > 0 else wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    clients = min(clients, MOST, soft - 50 if soft > 0 else MOST)
    return Crowd(
        host, port,
        [
            Phase("few", FEW, seconds * 0.3),
            Phase("crowd", clients, seconds * 0.4),
            Phase("few again", FEW, seconds * 0.3),
        ],
    )  # fmt: skip


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(prog="make load", description="A crowd for the service on this machine.")
    parser.add_argument("--url", help="where it listens; by default at HOST and PORT")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all (%(default)g)")
    parser.add_argument("--clients", type=int, help="in the crowd; by default more than there is room for")
    options = parser.parse_args()
    host, port = _address(options.url)
    console = Console()
    status = 0
    with asyncio.Runner() as runner:
        crowd = runner.run(_crowd(host, port, options.seconds, options.clients))
        console.print(f"Watch it at http://{host}:{port}/pool")
        columns = TextColumn("{task.description:9}"), BarColumn(24), TextColumn("{task.fields[told]}")
        try:
            with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
                runner.run(crowd.run(progress))
        except KeyboardInterrupt:
            status = 130
    console.print(summary(phase for phase in crowd.phases if phase.began))
    sys.exit(status)


if __name__ == "__main__":
    main()
