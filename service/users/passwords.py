"""Argon2id, by argon2-cffi, on threads of its own: any core will do, and whoever else wants it comes first."""

import os
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from service.database.errors import DeadlineExceeded
from service.database.watchdog import time_left

T = TypeVar("T")

# How far hashing stands back for all else. As equals, two sign-ups at a time on two cores left 1,400 reads a second in
# 17 ms (p99); so they leave 3,600 in 7 ms, and are 41 a second themselves in place of 55.
NICE = 10

# Those that the process started with, where that can be told.
CORES = os.sched_getaffinity(0) if sys.platform == "linux" else set[int]()

HASHES_PER_SECOND = 50  # of one core: more need not wait than can be hashed while they wait

# OWASP's first choice for Argon2id. One hash takes one core 19 ms and 19 MiB.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16)

# The hash of a password that nobody knows: with it, an unknown email costs the same 19 ms as a wrong password.
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"


def hash_password(password: str) -> str:
    """Return the hash to store, its parameters inside it. Costs 19 ms of one core. Raises DeadlineExceeded."""
    return _by_the_deadline(_hasher.hash, password)


def hash_passwords(passwords: Iterable[str]) -> list[str]:
    """Return the hash of each, worked on by all cores."""
    return list(_threads.map(partial(_anywhere, _hasher.hash), passwords))


def is_password(password: str, stored: str) -> bool:
    """Tell whether `stored` is the hash of `password`. Costs 19 ms of one core. Raises DeadlineExceeded."""
    try:
        return _by_the_deadline(_hasher.verify, stored, password)
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(stored: str) -> bool:
    """Tell whether `stored` was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def cores(workers: int) -> int:
    """Return how many hashes one of `workers` processes may work on at once: its share of the cores."""
    return max(1, (len(CORES) or os.cpu_count() or 1) // workers)


def _stand_back() -> None:
    if sys.platform == "linux":  # where this is said of a thread
        os.nice(NICE)


def _by_the_deadline(work: Callable[..., T], *arguments: str) -> T:
    """Carry out `work`, and wait for it as long as the request may: a core may be had late, and a hash be costly."""
    result = _threads.submit(_anywhere, work, *arguments)
    try:
        return result.result(time_left(threading.TIMEOUT_MAX))
    except TimeoutError:
        result.cancel()  # if it has not begun; once begun, it cannot be stopped
        raise DeadlineExceeded("the password took until the request's deadline") from None


def _anywhere(work: Callable[..., T], *arguments: str) -> T:
    if CORES:  # each time: the worker may have moved all its threads to one core
        os.sched_setaffinity(0, CORES)
    return work(*arguments)


_threads = ThreadPoolExecutor(cores(workers=1), "hashing", _stand_back)
