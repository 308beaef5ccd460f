"""The folder that workers share: where it is, and that killed services leave none for long."""

import fcntl
import os
import tempfile
import time
from pathlib import Path

import pytest

from service.extras.admin.worker_files import PREFIX, STALE, WorkerFiles

HELD, FREE = "held", "free"


def left_behind(parent: Path, name: str, *, age: float, lock: str) -> int:
    """Make a folder as a service leaves it; return the descriptor of its lock."""
    folder = parent / f"{PREFIX}{name}"
    folder.mkdir()
    (folder / "0.pool.json").write_text("{}")
    descriptor = os.open(folder / "0.lock", os.O_RDWR | os.O_CREAT)
    if lock == HELD:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    then = time.time() - age
    os.utime(folder, (then, then))
    return descriptor


def test_folders_of_killed_services_are_deleted_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    locks = [
        left_behind(tmp_path, "killed", age=STALE + 1, lock=FREE),
        left_behind(tmp_path, "alive", age=STALE + 1, lock=HELD),
        left_behind(tmp_path, "starting", age=0, lock=FREE),
    ]
    (tmp_path / "others").mkdir()
    files = WorkerFiles()
    files.open()
    files.write("pool", {"a": 1})
    assert files.read("pool") == {"a": 1}
    found = {each.name for each in tmp_path.iterdir()}
    assert {f"{PREFIX}alive", f"{PREFIX}starting", "others"} < found
    assert f"{PREFIX}killed" not in found
    files.close()
    assert len(list(tmp_path.iterdir())) == 3
    for lock in locks:
        os.close(lock)


def test_a_link_that_somebody_left_behind_creates_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    os.close(left_behind(tmp_path, "trap", age=0, lock=FREE))
    (tmp_path / f"{PREFIX}trap" / "1.lock").symlink_to(tmp_path / "created")
    os.utime(tmp_path / f"{PREFIX}trap", (0, 0))
    files = WorkerFiles()
    files.open()
    files.close()
    assert not (tmp_path / "created").exists()


def test_a_folder_that_cannot_be_written_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")  # not even root makes a folder there
    files = WorkerFiles()
    files.open()
    files.write("pool", {"a": [1]})
    assert files.read("pool") == {"a": [1]}
    assert list(files.read_others("pool")) == []
    assert files.leads()
    files.close()
