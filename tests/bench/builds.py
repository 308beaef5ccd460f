"""The peers in other languages: npm installs the locked packages of Fastify, go builds net/http with Debian's pgx."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

PEERS = Path(__file__).parent / "peers"
FASTIFY = PEERS / "fastify"
NET_HTTP = PEERS / "nethttp"
GO_PACKAGES = Path("/usr/share/gocode")  # of Debian's golang-github-jackc-pgx-v4-dev


def missing(names: Sequence[str]) -> dict[str, str]:
    """Build the contenders among `names` that have to be; return which of them cannot be had, and why."""
    return {name: lack for name, build in BUILDS.items() if name in names and (lack := build())}


def _fastify() -> str:
    if not (shutil.which("node") and shutil.which("npm")):
        return "node and npm are not installed"
    installed = FASTIFY / "node_modules" / ".package-lock.json"  # npm writes it last
    if _newer(installed, FASTIFY / "package-lock.json"):
        return ""
    return _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], FASTIFY, {})


def _net_http() -> str:
    if not shutil.which("go"):
        return "go is not installed: apt-get install golang-go golang-github-jackc-pgx-v4-dev"
    if _newer(NET_HTTP / "server", NET_HTTP / "server.go"):
        return ""
    environment = {"GO111MODULE": "off", "GOPATH": str(GO_PACKAGES)}
    return _run(["go", "build", "-o", "server", "server.go"], NET_HTTP, environment)


BUILDS: dict[str, Callable[[], str]] = {"fastify": _fastify, "nethttp": _net_http}


def _newer(built: Path, source: Path) -> bool:
    return built.exists() and built.stat().st_mtime > source.stat().st_mtime


def _run(argv: list[str], folder: Path, environment: dict[str, str]) -> str:
    """Run a build; return why it failed, or nothing."""
    done = subprocess.run(
        argv, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )  # fmt: skip
    return f"{argv[0]} failed: {done.stderr.strip()}" if done.returncode else ""
