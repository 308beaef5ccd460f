"""PgBouncer between the service and PostgreSQL, handing each session to whoever has a transaction."""

import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psycopg

from tests.support.polling import until
from tests.support.postgres import PASSWORD, TestDatabase, free_port

UNPRIVILEGED = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")  # it refuses to run as root


@dataclass
class Pooler:
    """PgBouncer in transaction mode, to be stopped and started at will."""

    database: TestDatabase
    folder: Path
    settings: str = ""  # lines of its configuration
    size: int = 3  # sessions at PostgreSQL: fewer than the service has connections
    port: int = field(default_factory=free_port)

    def __enter__(self) -> Self:
        users = self.folder / "users"
        users.write_text(f'"{self.database.name}" "{PASSWORD}"\n')
        self._configuration = self.folder / "pgbouncer.ini"
        self._configuration.write_text(
            "[databases]\n"
            f"* = host=127.0.0.1 port={self.database.cluster.port}\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = plain\nauth_file = {users}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self.size}\n{self.settings}\n"
        )
        self.folder.chmod(0o755)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.stop()

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*UNPRIVILEGED, "pgbouncer", str(self._configuration)], stdout=log, stderr=log
            )
        until(self._answers, "PgBouncer starts")

    def stop(self) -> None:
        """Stop at once, whatever is in progress."""
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(30)

    @property
    def environment(self) -> dict[str, str]:
        """The settings that lead to the database through it."""
        return {**self.database.environment, "DATABASE_PORT": str(self.port)}

    def connect(self) -> psycopg.Connection:
        return psycopg.connect(self.database.conninfo, port=self.port, autocommit=True, prepare_threshold=None)

    def _answers(self) -> bool:
        assert self._process.poll() is None, (self.folder / "log").read_text()
        try:
            self.connect().close()
        except psycopg.OperationalError:
            return False
        return True
