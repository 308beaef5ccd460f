"""Wait for what a test expects, not for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def until(condition: Callable[[], T], story: str, *, within: float = 30.0) -> T:
    """Call `condition` until it is true and return what it said; fail with `story` after `within` seconds."""
    end = time.monotonic() + within
    while not (value := condition()):
        assert time.monotonic() < end, f"expected within {within:g} s: {story}"
        time.sleep(0.02)
    return value
