"""What cannot be beaten on this machine: the database without a service before it, and the hash of a password.

pgbench runs the very statements of ours, prepared, over as many connections as a service has clients, up to 64: more
only slow PostgreSQL down. It shares the cores with PostgreSQL, as wrk does with a service. The hashes are made by as
many threads as there are cores.
"""

import math
import os
import re
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from statistics import quantiles

from service.users import passwords, queries
from service.users.models import Page
from tests.bench.wrk import Driven, Load
from tests.support.postgres import PASSWORD, TestDatabase

MOST = 64
WARM_UP = 0.5  # seconds

STATEMENTS = {
    "one": ("\\set id random(1, {users})", queries.SELECT_USER),
    "page": ("\\set after random(1, {users} - 200)\n\\set limit 100", queries.find_statement(Page(after=1))),
    "page1000": ("\\set after random(1, {users} - 2000)\n\\set limit 1000", queries.find_statement(Page(after=1))),
}


def pgbench(database: TestDatabase, load: Load, seconds: float) -> Driven:
    """Run the statement of a workload. pgbench counts in whole seconds, a warm-up included."""
    variables, statement = STATEMENTS[load.workload]
    statement = re.sub(":(MI|SS)", r"' || ':' || '\1", statement)  # of a time: pgbench would read variables
    statement = re.sub(r"%\((\w+)\)s", r":\1", statement)
    whole = math.ceil(WARM_UP + seconds) + 1  # the first of them it needs to connect
    with tempfile.TemporaryDirectory(prefix="pgbench-") as folder:
        script = Path(folder) / "script.sql"
        script.write_text(f"{variables.format(users=load.users)}\n{' '.join(statement.split())};\n")
        subprocess.run(
            [database.cluster.programs / "pgbench", f"--file={script}", "--protocol=prepared", "--no-vacuum",
             f"--client={min(MOST, load.connections)}", f"--time={whole}", "--log", "--log-prefix=each",
             database.conninfo],
            cwd=folder, env={**os.environ, "PGPASSWORD": PASSWORD}, check=True, capture_output=True, timeout=whole + 30,
        )  # fmt: skip
        lines = (line.split() for log in Path(folder).glob("each*") for line in log.read_text().splitlines())
        done = [(int(line[2]) / 1000, int(line[4]) + int(line[5]) / 1e6) for line in lines]  # milliseconds, at
    begin, end = min(at for _, at in done) + WARM_UP, max(at for _, at in done)
    return _driven([milliseconds for milliseconds, at in done if at >= begin], max(0.0, end - begin))


def hashing(seconds: float) -> Driven:
    """Hash passwords on every core."""
    took: list[float] = []
    end = time.monotonic() + seconds

    def work() -> None:
        while (started := time.monotonic()) < end:
            passwords.hash_password("nanoseconds")
            took.append((time.monotonic() - started) * 1000)

    threads = [threading.Thread(target=work) for _ in os.sched_getaffinity(0)]
    started = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return _driven(took, time.monotonic() - started)


def _driven(took: list[float], seconds: float) -> Driven:
    hundredths = quantiles(took, n=100) if len(took) > 1 else [0.0] * 99
    return Driven(len(took), seconds, 0, 0, 0, p50=hundredths[49], p99=hundredths[98])
