"""Argon2id hashes, by argon2-cffi, and imported ones of bcrypt, on low-priority threads that may use any core."""

import os
import re
import sys
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import bcrypt
from argon2 import PasswordHasher
from argon2.exceptions import VerificationError, VerifyMismatchError

from service.database.errors import DeadlineExceeded
from service.database.watchdog import time_left
from service.machine import usable_cores, usable_memory

T = TypeVar("T")
EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

# With two sign-ups at a time on two cores: 3,600 reads/s at a p99 of 7 ms, and 41 sign-ups/s. At equal priority:
# 1,400 reads/s at 17 ms, and 55 sign-ups/s.
NICE = 10

# The cores that the process could use at its start; empty where the platform does not say.
CORES = os.sched_getaffinity(0) if sys.platform == "linux" else set[int]()

HASHES_PER_SECOND = 50  # on one core: bounds the queue of requests that wait to hash

# OWASP's first choice for Argon2id. One hash takes one core 19 ms and 19 MiB.
MEMORY_COST = 19_456  # KiB
_hasher = PasswordHasher(time_cost=2, memory_cost=MEMORY_COST, parallelism=1, hash_len=32, salt_len=16)

# Hashes of other systems. Those of bcrypt cost twice as much with each step: 14 is a second, 20 a minute.
ARGON2ID = re.compile(
    r"\$argon2id\$v=(?:16|19)\$m=(\d{1,6}),t=(\d{1,4}),p=([1-9]|1[0-6])\$[A-Za-z0-9+/]{11,86}\$[A-Za-z0-9+/]{16,86}"
)
BCRYPT = re.compile(r"\$2[aby]\$(?:0[4-9]|1[0-4])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
BCRYPT_BYTES = 72  # of a password: bcrypt never used the rest
MAX_COST = 1 << 20  # KiB of memory x passes of Argon2id: half a second to a second of one core

# Hashes at once: one for each core, in a quarter of the memory.
MAX_HASHES = max(1, min(usable_cores(len(CORES) or os.cpu_count() or 1), usable_memory() // 4 // (MEMORY_COST * 1024)))

# The hash of a random password. Verify against it when the email is unknown, so that both cases take 19 ms.
DUMMY_HASH = "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5WV1dq5+WHhmDI++pDGOHw/3vqQNkclnp2pe3XE"


def hashes(predicate: Callable[[Any], bool]) -> Callable[[EndpointT], EndpointT]:
    """Mark an endpoint that hashes a password when `predicate` is true of the parsed JSON body.

    Such a request waits for a hashing permit before it waits for a thread.
    """

    def mark(endpoint: EndpointT) -> EndpointT:
        endpoint.hashes = predicate  # type: ignore[attr-defined]
        return endpoint

    return mark


def has_password(body: Any) -> bool:  # noqa: ANN401 - any JSON
    """Return whether a body has a password."""
    return isinstance(body, dict) and "password" in body


def hash_password(password: str) -> str:
    """Return the hash to store; it contains its parameters. Costs 19 ms of one core. Raises DeadlineExceeded."""
    return _run_before_deadline(_hasher.hash, password)


def hash_passwords(passwords: Iterable[str]) -> list[str]:
    """Return the hash of each password. Uses every core that may be used."""
    return list(_threads.map(partial(_run_on_any_core, _hasher.hash), passwords))


def is_password(password: str, stored: str) -> bool:
    """Return whether `stored` is the hash of `password`. Costs 19 ms of one core. Raises DeadlineExceeded.

    A text that is no hash costs as much: the time does not tell that nobody can log in with it.
    """
    try:
        if BCRYPT.fullmatch(stored):
            return _run_before_deadline(bcrypt.checkpw, password.encode()[:BCRYPT_BYTES], stored.encode())
        return _run_before_deadline(_hasher.verify, stored, password)
    except VerifyMismatchError:
        return False
    except (VerificationError, ValueError):  # InvalidHashError is a ValueError, and so is the error for no ASCII
        return is_password(password, DUMMY_HASH)


def needs_rehash(stored: str) -> bool:
    """Return whether `stored` was made with other parameters than the current ones."""
    return not stored.startswith("$argon2") or _hasher.check_needs_rehash(stored)


def is_affordable_hash(stored: str) -> bool:
    """Return whether `stored` is a hash that `is_password` can verify in about a second, with 256 MiB at most."""
    if found := ARGON2ID.fullmatch(stored):
        memory, passes, lanes = map(int, found.groups())
        return passes > 0 and 8 * lanes <= memory <= MAX_COST // 4 and memory * passes <= MAX_COST
    return BCRYPT.fullmatch(stored) is not None


def concurrent_hashes(workers: int, threads: int) -> int:
    """Return how many hashes one of `workers` processes may compute at once, at least 1.

    That is its share of what the machine allows, and leaves one of its `threads` to requests that do not hash.
    """
    return max(1, min(MAX_HASHES // workers, threads - 1))


def start_threads(count: int) -> None:
    """Start `count` of the threads that hash, rather than at the first hash. Raises RuntimeError."""
    all_started = threading.Barrier(count)
    try:
        for _ in range(count):
            _threads.submit(all_started.wait)
    except RuntimeError:
        all_started.abort()
        raise


def _lower_priority() -> None:
    if sys.platform == "linux":  # elsewhere it would apply to the whole process
        os.nice(NICE)


def _run_before_deadline(function: Callable[..., T], *arguments: str | bytes) -> T:
    result = _threads.submit(_run_on_any_core, function, *arguments)
    try:
        return result.result(time_left(threading.TIMEOUT_MAX))
    except TimeoutError:
        result.cancel()  # a hash that has begun cannot be stopped
        raise DeadlineExceeded("the password took until the request's deadline") from None


def _run_on_any_core(function: Callable[..., T], *arguments: str | bytes) -> T:
    if CORES:  # each time: the worker may have pinned all its threads to one core since
        os.sched_setaffinity(0, CORES)
    return function(*arguments)


_threads = ThreadPoolExecutor(MAX_HASHES, "hashing", _lower_priority)
