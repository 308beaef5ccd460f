"""Argon2id, by argon2-cffi, on threads of its own: any core will do, and whoever else wants it comes first."""

import os
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from service.affinity import leave_the_core

T = TypeVar("T")

# How far hashing stands back for all else. As equals, two sign-ups at a time on two cores left 1,400 reads a second in
# 17 ms (p99); so they leave 3,600 in 7 ms, and are 41 a second themselves in place of 55.
NICE = 10

# OWASP's first choice for Argon2id. One hash takes one core 19 ms and 19 MiB.
_hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1, hash_len=32, salt_len=16)

# The hash of a password that nobody knows: with it, an unknown email costs the same 19 ms as a wrong password.
NOBODY = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"


def _stand_back() -> None:
    if sys.platform == "linux":  # where this is said of a thread
        os.nice(NICE)


_threads = ThreadPoolExecutor(os.cpu_count(), "hashing", _stand_back)


def hash_password(password: str) -> str:
    """Return the hash to store, its parameters inside it. Costs 19 ms of one core."""
    return _hashed(lambda: _hasher.hash(password))


def is_password(password: str, stored: str) -> bool:
    """Tell whether `stored` is the hash of `password`. Costs 19 ms of one core."""
    try:
        return _hashed(lambda: _hasher.verify(stored, password))
    except (VerificationError, InvalidHashError):
        return False


def is_outdated(stored: str) -> bool:
    """Tell whether `stored` was made with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def cores(workers: int) -> int:
    """Return how many hashes one of `workers` processes may work on at once: its share of the cores."""
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, available // workers)


def _hashed(work: Callable[[], T]) -> T:
    def anywhere() -> T:
        leave_the_core()
        return work()

    return _threads.submit(anywhere).result()
