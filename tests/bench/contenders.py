"""Who is measured, and how each is started: one worker process, uvloop and httptools where uvicorn serves.

No peer writes an access log. Ours does write its one line per request, to a file: it cannot be switched off.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field

UVICORN = "-m uvicorn --host 127.0.0.1 --port {port} --loop uvloop --http httptools --no-access-log --log-level warning"
GUNICORN = "-m gunicorn --bind 127.0.0.1:{port} --workers 1 --worker-class gthread --threads 8 --log-level warning"
PEERS = "tests.bench.peers"

EVERYTHING = ("one", "page", "page1000", "create", "update", "mix")


@dataclass(frozen=True)
class Contender:
    """A server to start. `command` follows the program, which is this interpreter; `{port}` stands for a free port."""

    name: str
    title: str
    command: str
    workloads: tuple[str, ...] = EVERYTHING
    ours: bool = False
    program: str = sys.executable
    settings: Mapping[str, str] = field(default_factory=dict)  # of ours, beside those of every run

    def argv(self, port: int) -> list[str]:
        """Return the command line."""
        return [self.program, *self.command.format(port=port).split()]


OWN = ("update_keyed", "update_matched", "newest", "ids", "prefix", "since", "counted")  # what no peer has

OURS = Contender("ours", "this service", "-m service serve", (*EVERYTHING, *OWN), ours=True)
READS = ("one", "page")

# What `ARGS=short` compares: the strongest forms of the peers, and ours where it may use any core.
SHORT = ("ours", "unpinned", "asyncpg", "fastapi_raw", "starlette_raw", "fastify", "nethttp")

CONTENDERS = {
    contender.name: contender
    for contender in (
        OURS,
        Contender("asyncpg", "async def, asyncpg, models", f"{UVICORN} {PEERS}.asyncpg_models:app"),
        Contender("fastapi_raw", "async def, asyncpg, JSON by PostgreSQL", f"{UVICORN} {PEERS}.fastapi_raw:app"),
        Contender("starlette_raw", "Starlette, asyncpg, JSON by PostgreSQL", f"{UVICORN} {PEERS}.starlette_raw:app"),
        Contender("fastify", "Fastify, node-postgres", "tests/bench/peers/fastify/server.js {port}", program="node"),
        Contender("nethttp", "Go, net/http, pgx", "{port}", READS, program="tests/bench/peers/nethttp/server"),
        Contender("psycopg", "async def, psycopg_pool", f"{UVICORN} {PEERS}.psycopg_async:app"),
        Contender("textbook", "def, SQLAlchemy by Depends (textbook)", f"{UVICORN} {PEERS}.sqlalchemy_textbook:app"),
        Contender("sqlalchemy", "async def, SQLAlchemy, asyncpg", f"{UVICORN} {PEERS}.sqlalchemy_async:app"),
        Contender("connect", "def, a connection per request", f"{UVICORN} {PEERS}.connection_per_request:app"),
        Contender("flask", "Flask, psycopg_pool, gunicorn", f"{GUNICORN} {PEERS}.flask_threads:app"),
        Contender("django", "Django, its pool, gunicorn", f"{GUNICORN} {PEERS}.django_threads:application"),
        Contender(
            "unpinned",
            "this service on any core",
            "-m service serve",
            READS,
            ours=True,
            settings={"WORKER_AFFINITY": "false"},
        ),
        Contender("unmetered", "this service, nothing counted", "-m tests.bench.unmetered serve", ("one",), ours=True),
        Contender("constant", "limit: FastAPI answers a constant", f"{UVICORN} {PEERS}.constant:app", ("one",)),
    )
}
