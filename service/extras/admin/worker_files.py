"""Files that the workers of one supervisor share: each worker writes its own and reads all."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any

PREFIX = "users-service-"  # of the folders' names
SPACE = 512 * 2**10  # bytes that must be free: the files of a worker take a tenth
STALE = 60.0  # seconds after which a folder that no worker uses was left by a service that was killed


class WorkerFiles:
    """The files of one worker, named after its slot. A worker that ends leaves slot and files to the next one.

    A worker without a supervisor shares them with nobody, and does without them where no folder can be written.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None  # None before `open`, and where no folder can be written
        self._slot = 0
        self._locks: list[int] = []  # descriptors. A lock is held until its descriptor is closed or the process dies
        self._leads = False
        self._writing = Lock()

    def open(self) -> None:
        """Claim the first slot that no living worker has. Delete what killed services left behind.

        The workers of one supervisor, and nobody else, share the secret that names the folder. Raises OSError when
        there is a supervisor, and no folder can be written.
        """
        secret = hashlib.sha256(b"metrics" + multiprocessing.current_process().authkey).hexdigest()
        for parent in _parents():
            _sweep(parent)
            folder = parent / f"{PREFIX}{secret[:32]}"
            with suppress(OSError):
                folder.mkdir(mode=0o700, exist_ok=True)
                with tempfile.TemporaryFile(dir=folder) as file:
                    file.write(bytes(SPACE))
                self._folder = folder
                break
        if self._folder is None and multiprocessing.parent_process() is not None:
            raise OSError("no folder that the workers can share is writable: set TMPDIR to one, or WORKERS=1")
        for self._slot in count():
            if self._claim(str(self._slot)):
                return

    def close(self) -> None:
        """Leave the slot. Delete the folder if no worker lives."""
        with self._writing:
            while self._locks:
                os.close(self._locks.pop())
        if self._folder and not _is_in_use(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)

    def leads(self) -> bool:
        """Return whether this worker does what one does for all. It does so until it ends. Raises OSError."""
        self._leads = self._leads or self._claim("leader")
        return self._leads

    def write(self, name: str, content: object) -> None:
        """Replace the file `name` in one step; without a folder or after `close`, do nothing. Raises OSError."""
        text = json.dumps(content)
        with self._writing:
            if self._folder and self._locks:
                for lock in self._locks:
                    os.utime(lock)  # or a cleaner of old temporary files would delete it
                path = self._folder / f"{self._slot}.{name}.json"
                new = path.with_suffix(".new")
                new.write_text(text)
                new.replace(path)

    def read(self, name: str) -> Any:  # noqa: ANN401 - any JSON
        """Return the content of the file `name` in this worker's slot; None if there is none."""
        return _read(self._folder / f"{self._slot}.{name}.json") if self._folder else None

    def read_others(self, name: str) -> Iterator[tuple[Any, bool]]:
        """Yield the content of the file `name` of each other worker, and whether that worker lives."""
        for lock in self._folder.glob("[0-9]*.lock") if self._folder else ():
            content = _read(lock.with_name(f"{lock.stem}.{name}.json"))
            if int(lock.stem) != self._slot and content is not None:
                yield content, _is_held(lock)

    def _claim(self, name: str) -> bool:
        """Hold a lock from now on, unless another worker does."""
        if not self._folder:
            return True
        lock = _open_lock(self._folder / f"{name}.lock")
        if _try_lock(lock, fcntl.LOCK_EX):
            self._locks.append(lock)
            return True
        os.close(lock)
        return False


def _parents() -> Iterator[Path]:
    """Yield the folders for temporary files that there are; /dev/shm is in memory."""
    with suppress(FileNotFoundError):  # none is writable
        yield Path(tempfile.gettempdir())
    if Path("/dev/shm").is_dir():  # noqa: S108
        yield Path("/dev/shm")  # noqa: S108


def _sweep(parent: Path) -> None:
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # another worker sweeps it
            found = folder.lstat()
            is_stale = found.st_uid == os.geteuid() and time.time() - found.st_mtime > STALE
            if is_stale and not _is_in_use(folder):
                shutil.rmtree(folder)


def _is_in_use(folder: Path) -> bool:
    return any(_is_held(lock) for lock in folder.glob("*.lock"))


def _is_held(path: Path) -> bool:
    lock = _open_lock(path)
    try:
        return not _try_lock(lock, fcntl.LOCK_SH)
    finally:
        os.close(lock)


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read(path: Path) -> Any:  # noqa: ANN401 - any JSON
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
