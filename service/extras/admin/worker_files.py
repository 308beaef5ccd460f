"""Files that the workers of one supervisor share: each worker writes its own and reads all."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from threading import Lock
from typing import Any


class WorkerFiles:
    """The files of one worker, named after its slot. A worker that ends leaves slot and files to the next one."""

    def __init__(self) -> None:
        self._folder = Path()
        self._slot = 0
        self._locks: list[int] = []  # descriptors. A lock is held until its descriptor is closed or the process dies
        self._leads = False
        self._writing = Lock()

    def open(self) -> None:
        """Claim the first slot that no living worker has. Raises OSError.

        The workers of one supervisor, and nobody else, share the secret that names the folder.
        """
        secret = hashlib.sha256(b"metrics" + multiprocessing.current_process().authkey).hexdigest()
        self._folder = Path(tempfile.gettempdir(), f"users-service-{secret[:32]}")
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for self._slot in count():
            if self._claim(str(self._slot)):
                return

    def close(self) -> None:
        """Leave the slot. Delete the folder if no worker lives."""
        with self._writing:
            while self._locks:
                os.close(self._locks.pop())
        if not any(map(self._is_alive, self._slots())):
            shutil.rmtree(self._folder, ignore_errors=True)

    def leads(self) -> bool:
        """Return whether this worker does what one does for all. It does so until it ends. Raises OSError."""
        self._leads = self._leads or self._claim("leader")
        return self._leads

    def write(self, name: str, content: object) -> None:
        """Replace this worker's file `name` in one step. Does nothing after `close`. Raises OSError."""
        with self._writing:
            if self._locks:
                for lock in self._locks:
                    os.utime(lock)  # or a cleaner of old temporary files would delete it
                path = self._file(self._slot, name)
                new = path.with_suffix(".new")
                new.write_text(json.dumps(content))
                new.replace(path)

    def read(self, name: str) -> Any:  # noqa: ANN401 - any JSON
        """Return the content of the file `name` in this worker's slot; None if there is none."""
        return self._read(self._slot, name)

    def read_others(self, name: str) -> Iterator[tuple[Any, bool]]:
        """Yield the content of the file `name` of each other worker, and whether that worker lives."""
        for slot in self._slots():
            if slot != self._slot and (content := self._read(slot, name)) is not None:
                yield content, self._is_alive(slot)

    def _read(self, slot: int, name: str) -> Any:  # noqa: ANN401 - any JSON
        try:
            return json.loads(self._file(slot, name).read_text())
        except FileNotFoundError:
            return None

    def _file(self, slot: int, name: str) -> Path:
        return self._folder / f"{slot}.{name}.json"

    def _slots(self) -> list[int]:
        return [int(path.stem) for path in self._folder.glob("[0-9]*.lock")]

    def _is_alive(self, slot: int) -> bool:
        lock = self._open_lock(str(slot))
        try:
            return not _try_lock(lock, fcntl.LOCK_SH)
        finally:
            os.close(lock)

    def _claim(self, name: str) -> bool:
        """Hold a lock from now on, unless another worker does."""
        lock = self._open_lock(name)
        if _try_lock(lock, fcntl.LOCK_EX):
            self._locks.append(lock)
            return True
        os.close(lock)
        return False

    def _open_lock(self, name: str) -> int:
        return os.open(self._folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try_lock(lock: int, how: int) -> bool:
    try:
        fcntl.flock(lock, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
