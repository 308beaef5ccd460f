"""Who runs the service: root, where the tests do, and a user with no rights but its own."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.support.checkout import Checkout, copied

NOBODY = 65534


def become(uid: int) -> tuple[str, ...]:
    """Return what stands before a command that is to run as another user."""
    return ("setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--no-new-privs")


@dataclass(frozen=True)
class Account:
    """Somebody, and whether others may enter the folder that the checkout is in."""

    name: str
    uid: int
    open_to_others: bool = False

    def __str__(self) -> str:
        return self.name

    @property
    def run_as(self) -> tuple[str, ...]:
        """What stands before each command."""
        if self.uid == os.geteuid():
            return ()
        # An interpreter below /root is closed to others: then, and only then, may they read what they do not own.
        reads = subprocess.run([*become(self.uid), "--inh-caps=-all", "--", "test", "-x", sys.executable], check=False)
        if reads.returncode == 0:
            return (*become(self.uid), "--inh-caps=-all", "--")
        caps = "-all,+dac_read_search"  # and the securebit has access() know of it: initdb asks that
        return (
            *become(self.uid), "--securebits=+no_setuid_fixup", f"--inh-caps={caps}", f"--ambient-caps={caps}", "--"
        )  # fmt: skip

    @contextmanager
    def checkout(self, below: str = "checkout") -> Iterator[Checkout]:
        """Yield a copy of the checkout that belongs to this account."""
        with copied(below) as checkout:
            base = checkout.folder.parents[below.count("/")]
            base.chmod(0o755 if self.open_to_others else 0o700)
            (base / "tmp").mkdir()
            for path in (base, *base.rglob("*")):
                os.chown(path, self.uid, -1)
            settings = {"HOME": str(base), "TMPDIR": str(base / "tmp")}
            yield replace(checkout, run_as=self.run_as, settings=settings)


def stranger(seconds: int = 600) -> "subprocess.Popen[bytes]":
    """Start a program of the user that PostgreSQL runs as, with no part in the service."""
    prefix = [*become(NOBODY), "--"] if os.geteuid() == 0 else []
    return subprocess.Popen([*prefix, "sleep", str(seconds)])


ORDINARY = Account("an ordinary user", NOBODY if os.geteuid() == 0 else os.geteuid())
ROOT = Account("root in a folder closed to others", 0)
ROOT_IN_THE_OPEN = Account("root in an open folder", 0, open_to_others=True)


def modes(*roots: Path) -> dict[str, tuple[int, int, int]]:
    """Return mode, owner and group of `roots`, everything below them, and every folder above."""
    paths = {str(path) for root in roots for path in (root, *root.parents)}
    for root in roots:
        for folder, folders, files in os.walk(root):
            paths.update(f"{folder}/{name}" for name in folders + files)
    found = {}
    for path in paths:
        stat = os.lstat(path)
        found[path] = (stat.st_mode, stat.st_uid, stat.st_gid)
    return found
