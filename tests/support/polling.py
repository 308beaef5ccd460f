"""Wait for what a test expects, not for a time."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONGEST_PAUSE = 0.1  # seconds


def until(condition: Callable[[], T], story: str, *, within: float = 30.0) -> T:
    """Call `condition` until it is true and return what it said; fail with `story` after `within` seconds.

    The pauses grow with the time that has passed: many conditions cost a connection to PostgreSQL or more.
    """
    began = time.monotonic()
    while not (value := condition()):
        passed = time.monotonic() - began
        assert passed < within, f"expected within {within:g} s: {story}"
        time.sleep(min(0.01 + passed / 10, LONGEST_PAUSE))
    return value
