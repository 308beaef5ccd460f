"""A throwaway PostgreSQL cluster, to be stopped, restarted and killed at will."""

import atexit
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from secrets import token_hex
from types import TracebackType
from typing import Self
from urllib.parse import quote

import psycopg
from psycopg.conninfo import make_conninfo

from service.extras.embedded import command, programs
from tests.support.polling import until

PASSWORD = "postgres password"

# Data of clusters that live for a test lie in memory where there is room: on a disk, each start, database and stop
# takes several times as long.
MEMORY = Path("/dev/shm")
ROOM = 4 << 30  # bytes
FOLDER = MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM and os.access(MEMORY, os.W_OK) else None


def installed() -> dict[str, Path]:
    """Return the program folders of every PostgreSQL that can be had: the wheel's, and Debian's."""
    found = {"18": programs(), "16": programs().parents[1] / "pginstall" / "bin"}
    debian = Path("/usr/lib/postgresql")
    found |= {folder.name: folder / "bin" for folder in debian.glob("*") if (folder / "bin" / "initdb").exists()}
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@cache
def initialized(programs: Path) -> Path:
    """Return a data folder as initdb makes it, to be copied: initdb takes half a second of a core."""
    folder = Path(tempfile.mkdtemp(prefix="initdb-", dir=FOLDER))
    atexit.register(shutil.rmtree, folder)
    folder.chmod(0o755)
    data, secret = folder / "data", folder / "password"
    data.mkdir(mode=0o700)
    secret.write_text(PASSWORD)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        for path in (data, secret):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    subprocess.run(
        [*command(programs / "initdb", data), "--username=postgres", "--auth=scram-sha-256",
         "--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", f"--pwfile={secret}", f"--pgdata={data}"],
        check=True, capture_output=True,
    )  # fmt: skip
    return data


@dataclass
class Cluster:
    """Listens on TCP, with a password, and on a Unix socket."""

    programs: Path
    settings: dict[str, str] = field(default_factory=dict)
    port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="pg-", dir=FOLDER)))

    def __enter__(self) -> Self:
        self.create()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    @property
    def data(self) -> Path:
        return self.folder / "data"

    def create(self) -> None:
        template = initialized(self.programs)
        self.folder.chmod(0o755)
        if os.geteuid() == 0:
            os.chown(self.folder, template.stat().st_uid, template.stat().st_gid)
        subprocess.run(["cp", "--archive", template, self.data], check=True)

    def standby(self) -> "Cluster":
        """Return a standby that follows this running cluster, to be started."""
        standby = Cluster(self.programs)
        standby.folder.chmod(0o755)
        standby.data.mkdir(mode=0o700)
        if os.geteuid() == 0:
            for path in (standby.folder, standby.data):
                os.chown(path, self.data.stat().st_uid, self.data.stat().st_gid)
        subprocess.run(
            [*command(self.programs / "pg_basebackup", standby.data), "--write-recovery-conf", "--checkpoint=fast",
             "--no-sync", f"--pgdata={standby.data}", f"--dbname={self.conninfo('')}"],
            check=True, capture_output=True,
        )  # fmt: skip
        return standby

    def start(self) -> None:
        settings = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
            "fsync": "off",  # the machine does not crash in a test; a killed process loses nothing all the same
            **self.settings,
        }
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*command(self.programs / "postgres", self.data), "-D", str(self.data), *options],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        until(self.answers, f"PostgreSQL in {self.folder} starts")

    def answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo(), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop: SIGTERM smart, SIGINT fast, SIGQUIT immediate."""
        self.process.send_signal(how)
        self.process.wait(60)

    def freeze(self) -> list[int]:
        """Stop every process of the server in its tracks; return them for `thaw`."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        pids = [self.process.pid, *map(int, children)]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return pids

    def thaw(self, pids: list[int]) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)

    def remove(self) -> None:
        if self.process.poll() is None:
            self.stop(signal.SIGQUIT)
        shutil.rmtree(self.folder)

    def conninfo(self, dbname: str = "postgres") -> str:
        return make_conninfo(host="127.0.0.1", port=self.port, user="postgres", password=PASSWORD, dbname=dbname)

    def create_database(self, options: str = "") -> "TestDatabase":
        name = f"test_{token_hex(4)}"
        with psycopg.connect(self.conninfo(), autocommit=True) as conn:
            conn.execute(f"CREATE ROLE {name} LOGIN PASSWORD '{PASSWORD}'")
            conn.execute(f"CREATE DATABASE {name} OWNER {name} {options}")
        return TestDatabase(self, name)


@dataclass
class TestDatabase:
    """An empty database, and the role of the same name that owns it."""

    __test__ = False  # pytest: not a class of tests

    cluster: Cluster
    name: str

    @property
    def conninfo(self) -> str:
        return make_conninfo(
            host="127.0.0.1", port=self.cluster.port, user=self.name, password=PASSWORD, dbname=self.name
        )

    @property
    def environment(self) -> dict[str, str]:
        """The settings that lead to it."""
        return {
            "DATABASE_HOSTNAME": "127.0.0.1",
            "DATABASE_PORT": str(self.cluster.port),
            "DATABASE_NAME": self.name,
            "DATABASE_USERNAME": self.name,
            "DATABASE_PASSWORD": PASSWORD,
        }

    def url(self, *clusters: Cluster) -> str:
        """Return a DATABASE_URL with the hosts `clusters`, which have this database too."""
        hosts = ",".join(f"127.0.0.1:{cluster.port}" for cluster in clusters)
        return f"postgresql://{self.name}:{quote(PASSWORD)}@{hosts}/{self.name}"

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.conninfo, autocommit=True)

    def as_superuser(self) -> psycopg.Connection:
        return psycopg.connect(self.cluster.conninfo(self.name), autocommit=True)
