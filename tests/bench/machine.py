"""What the figures were made on, and with."""

import os
import platform
import re
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from tests.support.postgres import Cluster
from tests.support.process import CHECKOUT

PACKAGES = (
    "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "pydantic", "psycopg", "psycopg-pool", "argon2-cffi",
    "asyncpg", "SQLAlchemy", "Flask", "Django", "gunicorn",
)  # fmt: skip


def describe(cluster: Cluster) -> dict[str, str]:
    """Return it as rows of a table."""
    version = _output(str(cluster.programs / "postgres"), "--version")
    commit = _output("git", "-C", str(CHECKOUT), "describe", "--always", "--dirty")
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": f"make bench {f'ARGS={shlex.quote(shlex.join(sys.argv[1:]))}' if sys.argv[1:] else ''}".strip(),
        "commit": commit or "unknown",
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GiB",
        "load before the start": f"{os.getloadavg()[0]:.1f}",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "PostgreSQL": f"{version.split()[-1]}, over TCP on 127.0.0.1, with a password",
        "wrk": (_output("wrk", "-v").split() or ["", "unknown"])[1],
        "Node": _output("node", "--version") or "none",
        "packages": ", ".join(f"{name} {metadata.version(name)}" for name in PACKAGES),
    }


def affinity(log: str) -> str:
    """Return what our service told of the core that it keeps to."""
    found = re.search(r"this worker keeps to core \d+|every core has its worker already|core \d+ is all", log)
    return found[0] if found else "this worker keeps to no core"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _output(*argv: str) -> str:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return ""
    return done.stdout.strip()
