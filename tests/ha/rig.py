"""Three PostgreSQL servers under Patroni, as service/deploy/ has them, each on a machine of its own; and their faults.

    the service, HAProxy, PgBouncer, the load --- a bridge --- one    10.0.0.11   PostgreSQL, Patroni
                                      10.0.0.1        |   \\-- two    10.0.0.12
                                        etcd 10.0.0.21     \\- three  10.0.0.13

The machines are namespaces of the network, so the addresses are those of the files, and several rigs do not meet.
"""

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import httpx
import psycopg

from tests.ha.roles import RoleWatch
from tests.support.namespaces import run
from tests.support.polling import until
from tests.support.process import CHECKOUT, Service

NODES = {"one": "10.0.0.11", "two": "10.0.0.12", "three": "10.0.0.13"}
HERE, ETCD = "10.0.0.1", "10.0.0.21"
DEPLOY = CHECKOUT / "service" / "deploy"
FOLDER = Path("/run/ha")  # in memory, and in a mount of this run's own
PASSWORD = "service password"
SECRETS = {
    "PATRONI_SUPERUSER_USERNAME": "postgres",
    "PATRONI_SUPERUSER_PASSWORD": "superuser password",
    "PATRONI_REPLICATION_USERNAME": "replicator",
    "PATRONI_REPLICATION_PASSWORD": "replication password",
    "PATRONI_RESTAPI_USERNAME": "admin",
    "PATRONI_RESTAPI_PASSWORD": "admin password",
}
ADMIN = httpx.BasicAuth("admin", "admin password")
READ_ALL = "+dac_read_search"  # wherever the checkout and its Python are, such as in /root
POSTGRES = ("setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups",
            f"--inh-caps={READ_ALL}", f"--ambient-caps={READ_ALL}")  # fmt: skip

ACCOUNT = f"postgresql://users:{quote(PASSWORD)}"

THREE_HOSTS = f"{ACCOUNT}@{','.join(NODES.values())}/users"

# How the service reaches the servers: the settings of each form.
FORMS = {
    "three hosts": {"DATABASE_URL": THREE_HOSTS},
    "with replicas": {"DATABASE_URL": THREE_HOSTS, "DATABASE_READ_URL": THREE_HOSTS},
    "HAProxy": {"DATABASE_URL": f"{ACCOUNT}@127.0.0.1:5000/users"},
    "PgBouncer": {"DATABASE_URL": f"{ACCOUNT}@127.0.0.1:6432/users"},
}
INSTANCES = 2  # of the service, for each form


def programs() -> Path:
    """Return the folder of Debian's newest PostgreSQL."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    return found[-1].parent if found else Path("/nowhere")


PATRONI = CHECKOUT / ".venv" / "patroni" / "bin" / "patroni"


def missing() -> str:
    """Say what this machine lacks, in one sentence; nothing when it has it all."""
    needed = {"etcd": "etcd-server", "haproxy": "haproxy", "pgbouncer": "pgbouncer", "ip": "iproute2"}
    packages = [package for program, package in needed.items() if shutil.which(program) is None]
    packages += [] if programs().exists() else ["postgresql"]
    needs = ["to be run as root"] if os.geteuid() else []
    needs += ["`make test-ha`, which starts it in a namespace of processes"] if os.getppid() != 1 else []
    needs += [f"`apt-get install {' '.join(packages)}`"] if packages else []
    needs += [] if PATRONI.exists() else ["Patroni in .venv/patroni, by `make test-ha`"]
    return f"tests/ha needs {' and '.join(needs)}: see .ci/run" if needs else ""


@dataclass
class Rig:
    """The whole of it. Entering takes 20 s."""

    services: dict[str, list[Service]] = field(default_factory=dict)  # by form
    _daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        with self.explain(), ExitStack() as stack:
            stack.callback(self._kill)
            self._build()
            self.start_etcd()
            for node in NODES:
                self.start(node)
            until(self.is_healthy, "a leader and two standbys", within=90)
            self._create_database()
            self.roles = stack.enter_context(RoleWatch(NODES, SECRETS["PATRONI_SUPERUSER_PASSWORD"]))
            self._start_haproxy()
            self._start_pgbouncer()
            for form, settings in FORMS.items():
                start = partial(Service, {**settings, "INSTANCES": str(INSTANCES)})
                self.services[form] = [stack.enter_context(start()) for _ in range(INSTANCES)]
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def explain(self) -> Iterator[None]:
        """Add the end of each program's log to a failure."""
        try:
            yield
        except Exception as exc:
            for path in sorted(FOLDER.glob("*.log")):
                exc.add_note(f"{path.name}:\n{path.read_text()[-3000:]}")
            raise

    # What a fault does.

    def kill(self, node: str) -> None:
        """Kill everything on the machine, as a power failure does."""
        self._signal(node, signal.SIGKILL)
        self._daemons.pop(node).wait(10)

    def kill_patroni(self, node: str) -> None:
        """Kill Patroni alone: its PostgreSQL lives on, and nobody demotes it."""
        patroni = self._daemons.pop(node)
        patroni.kill()
        patroni.wait(10)

    def start(self, node: str) -> None:
        """Start Patroni, which starts PostgreSQL or takes over the one that runs."""
        address = NODES[node]
        environment = {
            **os.environ,
            **SECRETS,
            "PATRONI_NAME": node,
            "PATRONI_RESTAPI_CONNECT_ADDRESS": f"{address}:8008",
            "PATRONI_POSTGRESQL_CONNECT_ADDRESS": f"{address}:5432",
            "PATRONI_POSTGRESQL_BIN_DIR": str(programs()),
            "PATRONI_POSTGRESQL_DATA_DIR": str(FOLDER / node / "data"),
            "PATRONI_POSTGRESQL_PGPASS": str(FOLDER / node / "pgpass"),
        }
        sockets = 'mount -t tmpfs -o mode=1777 tmpfs /run/postgresql; exec "$@"'  # a folder for each machine
        command = ["ip", "netns", "exec", node, "sh", "-c", sockets, "sh", *POSTGRES]
        self._start(node, [*command, str(PATRONI), str(DEPLOY / "patroni.yml")], environment)

    def freeze(self, node: str) -> None:
        """Stop every process of the machine; its kernel goes on to acknowledge packets."""
        self._signal(node, signal.SIGSTOP)

    def thaw(self, node: str) -> None:
        self._signal(node, signal.SIGCONT)

    def isolate(self, node: str) -> None:
        """Pull the machine's network cable."""
        run("ip", "link", "set", f"to-{node}", "down")

    def rejoin(self, node: str) -> None:
        run("ip", "link", "set", f"to-{node}", "up")

    def switch_over(self, leader: str) -> None:
        """Have Patroni hand the leader's place to the synchronous standby."""
        [candidate] = [member["name"] for member in self.members() if member["role"] == "sync_standby"]
        answer = httpx.post(
            f"http://{NODES[leader]}:8008/switchover",
            json={"leader": leader, "candidate": candidate}, auth=ADMIN, timeout=60,
        )  # fmt: skip
        assert answer.status_code == 200, answer.text

    def stop_etcd(self, _leader: str) -> None:
        etcd = self._daemons.pop("etcd")
        etcd.kill()
        etcd.wait(10)

    def start_etcd(self, _leader: str = "") -> None:
        url = f"http://{ETCD}:2379"
        data = f"--data-dir={FOLDER}/etcd"
        self._start("etcd", ["etcd", data, f"--listen-client-urls={url}", f"--advertise-client-urls={url}"])

    # What it looks like.

    @property
    def leader(self) -> str:
        """The leader's name."""
        [leader] = [member["name"] for member in self.members() if member["role"] == "leader"]
        return str(leader)

    def members(self) -> list[dict[str, Any]]:
        """Return what Patroni says of the servers, asked of the first that answers."""
        for address in NODES.values():
            try:
                found: list[dict[str, Any]] = httpx.get(f"http://{address}:8008/cluster", timeout=2).json()["members"]
            except (httpx.TransportError, ValueError, KeyError):
                continue
            return found
        return []

    def is_healthy(self) -> bool:
        """Return whether there are a leader, a synchronous standby and another one."""
        members = sorted((member["role"], member["state"], member["name"]) for member in self.members())
        wanted = [("leader", "running"), ("replica", "streaming"), ("sync_standby", "streaming")]
        if [member[:2] for member in members] != wanted:
            return False
        try:
            with self.connect("postgres") as conn:
                states = conn.execute(
                    "SELECT state, sync_state FROM pg_stat_replication ORDER BY sync_state"
                ).fetchall()
        except psycopg.OperationalError:
            return False
        return states == [("streaming", "async"), ("streaming", "sync")]

    def connect(self, database: str = "users") -> psycopg.Connection:
        """Connect to the leader as the superuser."""
        return psycopg.connect(
            host=NODES[self.leader], dbname=database, user="postgres",
            password=SECRETS["PATRONI_SUPERUSER_PASSWORD"], autocommit=True, connect_timeout=2,
        )  # fmt: skip

    def set_failsafe(self, *, to: bool) -> None:
        """Set Patroni's failsafe_mode."""
        url = f"http://{NODES[self.leader]}:8008/config"
        if httpx.get(url, timeout=10).json()["failsafe_mode"] == to:
            return
        answer = httpx.patch(url, json={"failsafe_mode": to}, auth=ADMIN, timeout=10)
        assert answer.status_code == 200, answer.text
        time.sleep(5)  # two rounds of Patroni's loop_wait, after which every server has read it

    # How it is built.

    def _build(self) -> None:
        FOLDER.mkdir()
        FOLDER.chmod(0o1777)
        os.environ["TMPDIR"] = tempfile.tempdir = str(FOLDER)
        Path("/run/postgresql").mkdir()
        run("ip", "link", "add", "bridge", "type", "bridge")
        for address in (HERE, ETCD):
            run("ip", "address", "add", f"{address}/24", "dev", "bridge")
        run("ip", "link", "set", "bridge", "up")
        for node, address in NODES.items():
            run("ip", "netns", "add", node)
            run("ip", "link", "add", f"to-{node}", "type", "veth", "peer", "name", "eth0", "netns", node)
            run("ip", "link", "set", f"to-{node}", "master", "bridge", "up")
            run("ip", "-n", node, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                run("ip", "-n", node, "link", "set", device, "up")
            folder = FOLDER / node
            folder.mkdir(mode=0o700)
            shutil.chown(folder, "postgres", "postgres")

    def _create_database(self) -> None:
        with self.connect("postgres") as conn:
            conn.execute(f"CREATE ROLE users LOGIN PASSWORD '{PASSWORD}'")
            conn.execute("CREATE DATABASE users OWNER users")

    def _start_haproxy(self) -> None:
        self._start("haproxy", ["haproxy", "-db", "-f", str(DEPLOY / "haproxy-postgresql.cfg")])

    def _start_pgbouncer(self) -> None:
        run("mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", "/etc/pgbouncer")
        users = Path("/etc/pgbouncer/userlist.txt")
        users.write_text(f'"users" "{PASSWORD}"\n')
        shutil.chown(users, "postgres", "postgres")
        self._start("pgbouncer", [*POSTGRES, "pgbouncer", str(DEPLOY / "pgbouncer.ini")])

    def _start(self, name: str, command: Iterable[str], environment: dict[str, str] | None = None) -> None:
        with (FOLDER / f"{name}.log").open("ab") as log:
            self._daemons[name] = subprocess.Popen(
                [*command], stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, cwd="/"
            )

    def _signal(self, node: str, how: signal.Signals) -> None:
        """Send a signal to every process of the machine, those that are started meanwhile too."""
        reached: set[str] = set()
        command = ["ip", "netns", "pids", node]
        while pids := {*subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()} - reached:
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(int(pid), how)
            reached |= pids

    def _kill(self) -> None:
        for node in NODES:
            self._signal(node, signal.SIGKILL)
        for daemon in self._daemons.values():
            daemon.kill()
            daemon.wait(10)
