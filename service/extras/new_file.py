"""A file that only appears when it is complete."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def new_file(file: Path, error: type[Exception]) -> Iterator[Path]:
    """Yield the path to write to, which becomes `file` when the block succeeds. Raise `error` when `file` exists."""
    if file.exists():
        raise error(f"{file} exists: choose another name")
    part = file.with_name(f"{file.name}.part")
    part.unlink(missing_ok=True)
    try:
        yield part
        part.rename(file)
    finally:
        part.unlink(missing_ok=True)
