"""One row of numbers for each worker, in files that all workers map into their memory.

So whichever worker is asked tells the whole service, and the numbers of a worker that was killed are not lost: the
one that takes its place goes on from them. prometheus-client has such a mode too. It costs 3 µs for each number
noted, and keeps a file for every worker there ever was; here it is 0.3 µs.
"""

import fcntl
import hashlib
import mmap
import multiprocessing
import os
import shutil
import tempfile
import threading
from array import array
from collections.abc import Sequence
from itertools import count
from pathlib import Path

CAPACITY = 32_768  # numbers in a row; today 23,000 are in use
SIZE = CAPACITY * 8  # bytes

Row = Sequence[float]


class Board:
    """The rows. Only `open` makes ours readable to others; before, it is private."""

    def __init__(self) -> None:
        """Have an empty row."""
        self.row = memoryview(bytearray(SIZE)).cast("d")
        self.lock = threading.Lock()  # to add is to read and to write
        self.width = 0
        self._names = hashlib.sha256()
        self._file = -1
        self._ours = Path()
        self.folder = Path()  # of all rows

    def reserve(self, name: str, numbers: int) -> int:
        """Return where `numbers` places begin that are called `name`."""
        start, self.width = self.width, self.width + numbers
        if self.width > CAPACITY:
            raise ValueError(f"no room for {name}: raise CAPACITY")
        self._names.update(f"{name} {numbers}\n".encode())
        return start

    def open(self) -> Path:
        """Share our row, which goes on from the numbers of a worker that has ended. Returns the folder of all rows.

        The workers of one supervisor, and nobody else, have the secret that names the folder in common. Raises OSError.
        """
        secret = hashlib.sha256(b"board" + multiprocessing.current_process().authkey).hexdigest()
        self.folder = Path(tempfile.gettempdir(), f"users-service-{secret[:32]}")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        for number in count():
            self._ours = self._path(str(number))
            self._file = os.open(self._ours, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            if locked(self._file, fcntl.LOCK_EX):
                break
            os.close(self._file)
        os.posix_fallocate(self._file, 0, SIZE)  # on a full disk it fails here, and not at a write into the memory
        row = memoryview(mmap.mmap(self._file, SIZE)).cast("d")
        with self.lock:
            for place in range(self.width):
                row[place] += self.row[place]
            self.row = row
        return self.folder

    def close(self) -> None:
        """Leave the row to the next worker, or take everything away when there is none."""
        if self._file < 0:
            return
        self.row = memoryview(bytearray(self.row)).cast("d")
        os.close(self._file)
        self._file, self._ours = -1, Path()
        if not any(alive for _, alive in self.rows()):
            shutil.rmtree(self.folder, ignore_errors=True)

    def rows(self) -> list[tuple[Row, bool]]:
        """Return a copy of every row, and whether its worker lives."""
        found: list[tuple[Row, bool]] = []
        if self._file >= 0:
            found.append((self.row[: self.width].tolist(), True))
        for path in set(self.folder.glob(self._path("*").name)) - {self._ours}:
            with path.open("rb") as file:
                alive = not locked(file.fileno(), fcntl.LOCK_SH)
                numbers = array("d", file.read(self.width * 8))
            if len(numbers) == self.width:
                found.append((numbers, alive))
        return found

    def _path(self, number: str) -> Path:
        return self.folder / f"{self._names.hexdigest()[:16]}-{number}.row"


def locked(file: int, how: int) -> bool:
    """Lock a file, unless somebody has it: tell whether it was done."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


BOARD = Board()
