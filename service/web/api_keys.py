"""API keys: a file with one line for each, `NAME SCOPE SHA-256`. Delete a line to revoke its key.

The file holds no key, only the hash of each: a key has 160 random bits, so that a fast hash is enough.
"""

import hashlib
import logging
import os
import re
import secrets
import time
import zlib
from pathlib import Path
from string import ascii_letters, digits
from typing import NamedTuple

from service.settings import SettingsError

logger = logging.getLogger(__name__)

# What a key of each scope may do. `operator` is for /metrics and /pool alone.
GRANTS = {
    "read": frozenset({"read"}),
    "write": frozenset({"read", "write", "signup"}),
    "signup": frozenset({"signup"}),
    "operator": frozenset({"operator"}),
}

# A prefix and a checksum, as GitHub's tokens have them: a scanner that searches for leaked secrets recognizes a key.
PREFIX = "users_"
ALPHABET = digits + ascii_letters
RANDOM_CHARACTERS = 27  # log2(62) * 27 = 160.8 bits
CHECKSUM_CHARACTERS = 6  # 62**6 > 2**32

NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}")  # it appears in the log
LINE = re.compile(rf"({NAME.pattern})\s+({'|'.join(GRANTS)})\s+([0-9a-f]{{64}})", re.ASCII)

CHECK_INTERVAL = 0.5  # seconds between two checks whether the file has changed

OTHERS = 0o077  # the mode bits of everybody but the owner


class Caller(NamedTuple):
    """Who sends a request: the name of the key, empty without one, and what it may do."""

    name: str
    scopes: frozenset[str]


class ApiKeys:
    """The keys of a file. To be used on one event loop, which reads the file again soon after it has changed."""

    def __init__(self, path: Path) -> None:
        """Read the file. A missing one holds no key."""
        self._path = path
        self._callers: dict[bytes, Caller] = {}
        self._version: tuple[int, ...] | None = None
        self._next_check = 0.0
        self._error = ""  # the last that was logged
        self._refresh()

    def __len__(self) -> int:
        return len(self._callers)

    def caller(self, key: bytes) -> Caller | None:
        """Return whose key this is.

        The time that a lookup takes depends on the hash of the key. Nobody can choose a key by its hash, so the time
        says nothing about the keys in the file: there is no need to compare with each of them in constant time.
        """
        if time.monotonic() >= self._next_check:
            self._refresh()
        return self._callers.get(hashlib.sha256(key).digest())

    def _refresh(self) -> None:
        """Read the file if it has changed: a `stat` takes 2 µs.

        Without the file nobody has a key. A file that cannot be read leaves the keys as they were.
        """
        self._next_check = time.monotonic() + CHECK_INTERVAL
        error = ""
        try:
            found = self._path.stat()
            version = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if version == self._version:
                return
            self._callers = parse(self._path.read_bytes(), self._path)
            self._version = version
            if found.st_mode & OTHERS:
                error = "is open to other users of this machine: change its mode to 600"
        except FileNotFoundError:
            self._callers, self._version = {}, None
            error = "does not exist: no API key is valid"
        except OSError as exc:
            error = f"cannot be read, the API keys stay as they were: {exc.strerror}"
        if error and error != self._error:
            logger.error("%s %s", self._path, error)
        self._error = error


def parse(content: bytes, path: Path) -> dict[bytes, Caller]:
    """Return the callers by the SHA-256 of their keys. Log a malformed line by its number, and skip it."""
    callers = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        text = line.partition("#")[0].strip()
        if match := LINE.fullmatch(text):
            name, scope, digest = match.groups()
            callers[bytes.fromhex(digest)] = Caller(name, GRANTS[scope])
        elif text:
            logger.error("%s, line %d: it takes NAME SCOPE SHA-256; skipped", path, number)
    return callers


def make_key() -> str:
    """Return a new key: the prefix, 160 random bits and a checksum, in base 62."""
    random = "".join(secrets.choice(ALPHABET) for _ in range(RANDOM_CHARACTERS))
    return PREFIX + random + checksum(random)


def checksum(text: str) -> str:
    """Return the CRC-32 of `text` in base 62."""
    rest, characters = zlib.crc32(text.encode()), ""
    for _ in range(CHECKSUM_CHARACTERS):
        rest, digit = divmod(rest, len(ALPHABET))
        characters = ALPHABET[digit] + characters
    return characters


def add_key(path: Path, name: str, scope: str) -> str:
    """Append a new key to the file and return it: it cannot be shown again. Raises SettingsError.

    A new file has the mode 0600, and the owner of its folder: root makes keys for a service that runs as another user.
    """
    if not NAME.fullmatch(name):
        raise SettingsError(f"{name!r} is no name for a key: it takes 1 to 64 letters, digits and . _ @ -")
    key = make_key()
    line = f"{name} {scope} {hashlib.sha256(key.encode()).hexdigest()}\n"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.touch(0o600)
        with path.open("a+b") as file:
            file.seek(0)
            content = file.read()
            if name in {caller.name for caller in parse(content, path).values()}:
                raise SettingsError(f"{path} has a key of the name {name}: choose another, or delete its line first")
            if not content and os.geteuid() == 0:
                folder = path.parent.stat()
                os.fchown(file.fileno(), folder.st_uid, folder.st_gid)
            file.write(line.encode() if content[-1:] in {b"", b"\n"} else b"\n" + line.encode())
    except OSError as exc:
        raise SettingsError(f"API_KEYS_FILE={path} cannot be written: {exc.strerror}") from exc
    return key
