"""A file that only appears when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def new_file(file: Path, error: type[Exception]) -> Iterator[IO[bytes]]:
    """Open what becomes `file` when the block succeeds; only its owner may read it.

    Raise `error` when `file` exists or cannot be written.
    """
    if file.exists():
        raise error(f"{file} exists: choose another name")
    part = file.with_name(f"{file.name}.part")
    try:
        part.unlink(missing_ok=True)
        with open(part, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as output:
            yield output
            output.flush()
            os.fsync(output.fileno())
        part.rename(file)
    except OSError as exc:
        raise error(f"{file} cannot be written: {exc.strerror}") from exc
    finally:
        part.unlink(missing_ok=True)
