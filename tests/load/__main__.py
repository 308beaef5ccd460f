"""Load the running service, to be watched at GET /pool: steady, then far past what it takes, then steady again.

The cells fill, the queue appears, what finds it full is refused, and all of it drains. It shows and does not measure,
as its clients share the machine with the service; `make bench` measures.

It is bounded: in clients, each of which asks for one thing at a time, and in time, even when the service hangs. It
loads nothing but this service, on this machine, and deletes the users that it made, also on Ctrl-C.
"""

import argparse
import asyncio
import ipaddress
import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import uvloop
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from service import settings as environment
from service.extras.http.clients import open_files
from service.settings import Settings, SettingsError
from tests.load.clients import Address, Client, Load, Phase

WRONG, INTERRUPTED, LEFT = 2, 130, 1  # exit statuses; LEFT: users may have been left behind

SECONDS = 40.0  # each phase is long enough to look at, and all of them are on the page's two minutes together
RANGE = (1.0, 300.0)
FEW, THINKS = 8, 0.05  # clients of the steady phases, seconds between their requests: some 150 requests/s
TIMES = 3  # clients past saturation for each request that threads and queue hold: two of three are refused at first
MOST = 2000  # clients
SPARE = 64  # files that this process has open beside its connections
FIRST = 3.0  # seconds for the first answer of all

Tell = Callable[[Phase, float, float], None]  # of a phase: the share of it that is over, requests/s since it last told


class Impossible(Exception):
    """There is nothing to load, or it may not be loaded; one line says why."""


def main() -> int:
    """Do what the command line says, and return the exit status."""
    parser = argparse.ArgumentParser(prog="make load ARGS=…", description=__doc__)
    parser.add_argument("--url", help="of the service; otherwise HOST and PORT tell, as they tell the service")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of all three phases together, 1 to 300")
    options = parser.parse_args()
    if not RANGE[0] <= options.seconds <= RANGE[1]:
        parser.error("--seconds takes 1 to 300")
    console = Console(highlight=False)
    try:
        settings = environment.load()
        address = locate(options.url, settings)
        return uvloop.run(run(address, options.seconds, console))
    except (Impossible, SettingsError) as exc:
        print(exc, file=sys.stderr)
        return WRONG


def locate(url: str | None, settings: Settings) -> Address:
    """Return the address of the service. Raises Impossible when it is not on this machine."""
    host, port = settings.host, settings.port
    if url is not None:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "", parts.port or 80) if parts.scheme == "http" else ("", 0)
        except ValueError:
            host = ""
        if not host:
            raise Impossible(f"--url {url}: it takes http://127.0.0.1:8000, with the port of the service")
    if host == "localhost":
        return Address(host, port)
    with suppress(ValueError):
        found = ipaddress.ip_address(host)
        if found.is_unspecified:  # the service listens everywhere, here too
            found = ipaddress.ip_address("127.0.0.1" if found.version == 4 else "::1")
        if found.is_loopback:
            return Address(str(found), port)
    raise Impossible(f"{host} is not this machine: the load goes to localhost, 127.0.0.1 or ::1 and nowhere else")


async def run(address: Address, seconds: float, console: Console) -> int:
    """Go through the phases, and say what came of them."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    places, smallest = await look(address)
    wanted = min(TIMES * places, MOST)
    clients, few = _affordable(wanted), min(FEW, smallest)
    phases = [
        Phase("steady", seconds * 0.3, few, THINKS),
        Phase("overload", seconds * 0.4, clients, 0.0),
        Phase("recovery", seconds * 0.3, few, THINKS),
    ]
    console.print(f"watch it at http://{address}/pool", soft_wrap=True)
    console.print(
        f"{seconds:g} s: {few} clients, then {clients}, then {few};"
        f" threads and queue hold {places} requests; Ctrl-C ends it",
        soft_wrap=True,
    )
    if clients < wanted:
        console.print(f"ulimit -n is too low for {wanted} clients", soft_wrap=True)
    load = Load(address)
    with _shown(console, phases) as (tick, tell):
        for phase in phases:
            await _live(load, phase, stopped, tick, tell)
            if stopped.is_set():
                break
        await load.end()
    await load.clean()
    _summarize(console, phases, load)
    if load.left:
        print(load.left, file=sys.stderr)
        return LEFT
    return INTERRUPTED if stopped.is_set() else 0


async def look(address: Address) -> tuple[int, int]:
    """Return how many requests all workers' threads and queues hold, and those of the smallest of them.

    Raises Impossible when it is not this service that answers there.
    """
    client = Client(address, FIRST)
    try:
        answer = await client.ask("GET", "/pool", None)
        places = [each["threads"]["size"] + each["queue"]["length"] for each in json.loads(answer.body)["workers"]]
        return sum(places), min(places)
    except TimeoutError:
        raise Impossible(f"nothing answers at http://{address} within {FIRST:g} s") from None
    except OSError:
        raise Impossible(f"no service runs at http://{address}: start it with `make run` in another terminal") from None
    except (ValueError, LookupError, TypeError):
        hint = "it wants an API key" if answer.status == 401 else "is it this service, and ready?"
        raise Impossible(f"http://{address}/pool does not tell of any worker ({answer.status}): {hint}") from None
    finally:
        client.leave()


def _affordable(clients: int) -> int:
    """Return how many of the clients may have a connection each, and raise this process's own limit for them."""
    return max(1, min(clients, open_files(clients + SPARE) - SPARE))


async def _live(load: Load, phase: Phase, stopped: asyncio.Event, tick: float, tell: Tell) -> None:
    """Have one phase, until its time is over or all is stopped."""
    load.begin(phase)
    began = told = time.monotonic()
    ended = 0
    while not stopped.is_set() and (left := began + phase.seconds - time.monotonic()) > 0:
        with suppress(TimeoutError):
            await asyncio.wait_for(stopped.wait(), min(left, tick) + 0.001)  # uvloop's timers are early by up to 1 ms
        now = time.monotonic()
        tell(phase, (now - began) / phase.seconds, (phase.ended - ended) / (now - told))
        told, ended = now, phase.ended
    phase.lasted = time.monotonic() - began


@contextmanager
def _shown(console: Console, phases: Sequence[Phase]) -> Iterator[tuple[float, Tell]]:
    """Yield what shows how a phase goes and how often to call it, in seconds: a bar in a terminal, otherwise lines."""
    if not console.is_terminal:
        yield 3.0, lambda phase, _, rate: print(f"{phase.name}: {_story(phase, rate)}", flush=True)
        return
    columns = (TextColumn("{task.description:8}"), BarColumn(24), TextColumn("{task.fields[story]}"))
    # It draws when it is told to: a thread of its own would draw ten times a second.
    with Progress(*columns, console=console, auto_refresh=False) as progress:
        tasks = {phase.name: progress.add_task(phase.name, total=1.0, story="") for phase in phases}

        def tell(phase: Phase, over: float, rate: float) -> None:
            progress.update(tasks[phase.name], completed=over, story=_story(phase, rate), refresh=True)

        yield 0.5, tell


def _story(phase: Phase, rate: float) -> str:
    failed = f", {phase.failed.total():,} failed" if phase.failed else ""
    return f"{rate:,.0f}/s, {len(phase.accepted):,} accepted, {len(phase.refused):,} refused{failed}"


def _summarize(console: Console, phases: Sequence[Phase], load: Load) -> None:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    table.add_column("phase", no_wrap=True)
    for name in ("clients", "accepted", "per s", "p50 ms", "p99 ms", "refused", "p99 ms", "failed"):
        table.add_column(name, justify="right", no_wrap=True)
    for phase in phases:
        if phase.lasted:
            table.add_row(
                phase.name,
                f"{phase.clients:,}",
                f"{len(phase.accepted):,}",
                f"{len(phase.accepted) / phase.lasted:,.0f}",
                _quantile(phase.accepted, 0.5),
                _quantile(phase.accepted, 0.99),
                f"{len(phase.refused):,}",
                _quantile(phase.refused, 0.99),
                f"{phase.failed.total():,}",
            )
    console.print(table)
    for kind, number in sum((phase.failed for phase in phases), Counter[str]()).most_common():
        console.print(f"failed: {number:,} of {kind!r}")
    console.print(f"users made and deleted again: {load.deleted:,}")


def _quantile(seconds: Sequence[float], share: float) -> str:
    return f"{sorted(seconds)[int(share * (len(seconds) - 1))] * 1000:,.1f}" if seconds else "-"


if __name__ == "__main__":
    sys.exit(main())
