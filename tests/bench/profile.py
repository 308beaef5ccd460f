"""Where the time of a request goes: of our service at work, by whose code runs, on the event loop and on its threads.

Samples of perf, from outside, of what has a core just then. Whatever Python does is one row: perf sees its interpreter
and not the function that it interprets, and py-spy, which does, saw next to nothing of threads that take short turns.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from tests.bench import database, machine, wrk
from tests.bench.contenders import OURS
from tests.bench.server import Server
from tests.bench.workloads import WORKLOADS
from tests.bench.wrk import Load

CONNECTIONS = 64
SECONDS = 10.0
A_SECOND = 1999  # samples, and no multiple of what else happens so often
MISSING = "perf is needed to see where the time goes: apt-get install linux-perf"

# Whose code, by the beginning of the name of the file that it was loaded from.
OWNERS = {
    "libpython": "Python: FastAPI, Starlette, uvicorn, psycopg and we, interpreted",
    "python": "Python: FastAPI, Starlette, uvicorn, psycopg and we, interpreted",
    "[kernel": "the kernel: sockets, and threads that wake each other",
    "libc": "libc: memory, locks",
    "loop": "uvloop",
    "parser": "httptools",
    "libpq": "psycopg's C and libpq",
    "_psycopg": "psycopg's C and libpq",
    "pq": "psycopg's C and libpq",
    "_pydantic": "pydantic",
}
REST = "the rest"


def require() -> None:
    """End with one sentence when perf is not there."""
    if not shutil.which("perf"):
        sys.exit(MISSING)


def measure(seconds: float) -> dict[str, Any]:
    """Return, for one user and for a page, whose code the time goes to."""
    with database.cluster() as cluster, Server(OURS, database.create(cluster)) as server:
        rows = [_one(server, workload, seconds) for workload in ("one", "page")]
        return {"machine": machine.describe(cluster), "profiles": rows}


def _one(server: Server, workload: str, seconds: float) -> dict[str, Any]:
    load = Load(workload, CONNECTIONS, database.USERS)
    wrk.drive(server.url, load, 1, 1)
    used = server.processor_seconds()
    driven = wrk.drive(server.url, load, seconds, 2)
    used = server.processor_seconds() - used
    return {
        "workload": workload,
        "rate": round(driven.rate),
        "server_us": round(used / driven.answers * 1e6, 1),
        "samples": _samples(server, load, seconds),
    }


def _samples(server: Server, load: Load, seconds: float) -> dict[str, list[int]]:
    """Return for each owner how often it was seen, on the event loop's thread and on the others."""
    found: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with tempfile.TemporaryDirectory() as folder:
        data = f"--{{}}={folder}/perf.data"
        what = ["--quiet", "--event=cpu-clock", f"--freq={A_SECOND}", f"--pid={server.process.pid}"]
        perf = subprocess.Popen(["perf", "record", *what, data.format("output"), "--", "sleep", f"{seconds:.0f}"])
        wrk.drive(server.url, load, seconds + 1, 3)
        perf.wait(60)
        report = ["perf", "report", data.format("input"), "--stdio", "--sort=pid,dso", "--fields=sample,pid,dso"]
        told = subprocess.run([*report, "--field-separator=;"], check=True, capture_output=True, text=True).stdout
    for line in told.splitlines():
        count, _, rest = line.partition(";")
        if count.strip().isdigit():
            thread, _, file = rest.partition(";")
            name = Path(file.strip()).name
            owner = next((owner for beginning, owner in OWNERS.items() if name.startswith(beginning)), REST)
            found[owner][str(server.process.pid) not in thread] += int(count)
    return found


def sections(saved: dict[str, Any]) -> list[str]:
    """Return a table for each workload."""
    lines = [f"With {CONNECTIONS} connections. Microseconds of a core for one request, and their share of all.", ""]
    for profile in saved["profiles"]:
        samples = profile["samples"]
        every = sum(map(sum, samples.values()))
        lines += [
            f"## {WORKLOADS[profile['workload']].title}: {profile['server_us']:.0f} µs, {every:,} samples",
            "",
            "| whose code | on the event loop | | on the threads | |",
            "|---|---:|---:|---:|---:|",
        ]
        samples["**all**"] = [sum(each) for each in zip(*samples.values(), strict=True)]
        for owner, counts in sorted(samples.items(), key=lambda item: -sum(item[1])):
            cells = [f"{profile['server_us'] * count / every:.0f} | {count / every:.0%}" for count in counts]
            lines.append(f"| {owner} | {' | '.join(cells)} |")
        lines.append("")
    return lines
