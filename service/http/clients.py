"""How many clients may be connected: each takes a file and some memory, also while it asks for nothing."""

import asyncio
import fcntl
import logging
import resource
import sys
import termios
from contextlib import suppress

logger = logging.getLogger(__name__)

# Of a worker: each may have sent 64 KiB of a head or a body, and together they are 256 MiB.
MOST = 4096

MOST_UNSENT = 2**28  # bytes of answers that clients do not take, likewise

# Files left for all else. Without any, a pool whose connections broke could not open others.
SPARE = 128

SHARE = 20  # one in so many idle clients goes when there is no room for a new one: who goes is seldom looked for


def room(threads: int) -> int:
    """Return how many clients a worker may have, and raise its limit of open files for them."""
    others = SPARE + 2 * threads  # a pool that is replaced has each connection twice
    files = open_files(MOST + others)
    clients = max(1, min(MOST, files - others))
    if clients < MOST:
        logger.warning("room for %d clients at once, as ulimit -n is %d", clients, files)
    return clients


def open_files(wanted: int) -> int:
    """Raise this process's limit of open files, as far as it may and unless it is higher; return the one in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    if soft < wanted:
        allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        with suppress(ValueError, OSError):  # macOS has another limit below an infinite one
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            return allowed
    return soft


def untaken(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has not taken yet: here and, where it tells (Linux), in the kernel.

    The kernel keeps up to 4 MiB, and lets us write again when a third of it is free: here alone, nothing would seem to
    move for minutes.
    """
    kept = 0
    with suppress(OSError):
        told = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        kept = int.from_bytes(told, sys.byteorder)
    return kept + transport.get_write_buffer_size()
