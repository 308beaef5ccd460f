"""How many clients may be connected: each takes a file and some memory, also while it asks for nothing."""

import asyncio
import fcntl
import logging
import resource
import socket
import sys
import termios
from contextlib import suppress

logger = logging.getLogger(__name__)

MAX_CLIENTS = 4096  # of a worker

# Bytes that a worker keeps of what clients send, and of what they do not read. With 4,096 clients, the buffers of the
# kernel below, and 120 MiB for the process itself, it stays under 512 MiB.
MAX_RECEIVED = 96 * 2**20
MAX_UNSENT = 64 * 2**20

# Bytes that the kernel keeps of a connection, in each direction; it doubles them for its own needs. Left to itself it
# keeps up to 4 MiB of answers: 500 clients that read none took 1.6 GiB. A request is small, and a page of 1,000 users
# goes out in a few pieces; while there are few clients, in one.
RECEIVE_BUFFER = 8 * 2**10
SEND_BUFFER = 8 * 2**10
LARGE_SEND_BUFFER = 64 * 2**10
FEW = 512  # clients that get the large one

# Files left for all else. Without any, a pool whose connections broke could not open others.
RESERVED_FDS = 128

EVICT_FRACTION = 20  # when full, evict the first 1/20 of the candidates, so that the scan is rare


def max_clients(threads: int) -> int:
    """Return how many clients a worker may have, and raise its limit of open files for them."""
    others = RESERVED_FDS + 2 * threads  # a pool that is replaced has each connection twice
    files = open_files(MAX_CLIENTS + others)
    clients = max(1, min(MAX_CLIENTS, files - others))
    if clients < MAX_CLIENTS:
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


def limit_buffers(listening: socket.socket) -> None:
    """Have the kernel keep little of each connection that `listening` accepts: they inherit its options."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)


def enlarge_send_buffer(transport: asyncio.Transport) -> None:
    """Let the kernel take a page of users in one piece."""
    with suppress(OSError):
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGE_SEND_BUFFER)


def unsent_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes the client has not acknowledged: here and, on Linux, in the kernel.

    The kernel lets us write again when a third of its buffer is free: here alone, nothing would seem to move.
    """
    in_kernel = 0
    with suppress(OSError):
        answer = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
        in_kernel = int.from_bytes(answer, sys.byteorder)
    return in_kernel + transport.get_write_buffer_size()
