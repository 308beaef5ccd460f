"""How many clients may be connected, and how many bytes of theirs are kept. Over a limit, some are evicted."""

import asyncio
import fcntl
import logging
import resource
import socket
import sys
import termios
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from service.telemetry import metrics

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
MAX_LARGE_BUFFERS = 512  # clients

# Files left for everything else. Without them, a pool whose connections broke could not open others.
RESERVED_FDS = 128

EVICT_FRACTION = 20  # when full, evict the first 1/20 of the candidates, so that the scan is rare


class Client(Protocol):
    """A connection, as far as its limits are concerned."""

    transport: asyncio.Transport
    received: int  # bytes that are kept of what it sent
    idle_since: float  # on the loop's clock

    @property
    def idle(self) -> bool:
        """Whether the service waits for the client."""

    def close(self) -> None:
        """Close the connection."""


class Clients:
    """The clients of a worker. To be used on one event loop only."""

    def __init__(self, limit: int = MAX_CLIENTS) -> None:
        self._limit = limit
        self._connected: set[Client] = set()
        self._stalled: set[Client] = set()  # those that do not read their responses
        self._received = 0  # bytes, of all

    def add(self, client: Client) -> None:
        """Add a client; when there are too many, evict those that have been idle for longest."""
        self._connected.add(client)
        if len(self._connected) <= MAX_LARGE_BUFFERS:
            enlarge_send_buffer(client.transport)
        if len(self._connected) > self._limit:
            self._evict((each for each in self._connected if each.idle), key=lambda each: each.idle_since)

    def remove(self, client: Client) -> None:
        """Forget a client. Removing it again does nothing."""
        self._connected.discard(client)
        self._stalled.discard(client)
        self.resize(client, 0)

    def resize(self, client: Client, received: int) -> None:
        """Note how many bytes are kept of what a client sent; when all have too many, evict those that sent most."""
        grows = received > client.received
        self._received += received - client.received
        client.received = received
        if grows and self._received > MAX_RECEIVED:
            self._evict((each for each in self._connected if each.received), key=lambda each: -each.received)

    def stall(self, client: Client) -> None:
        """Note that a client does not read; when too many bytes wait, evict those that have not read for longest."""
        self._stalled.add(client)
        while sum(each.transport.get_write_buffer_size() for each in self._stalled) > MAX_UNSENT:
            self._evict_one(min(self._stalled, key=lambda each: each.idle_since))

    def resume(self, client: Client) -> None:
        """Note that a client reads again."""
        self._stalled.discard(client)

    def _evict(self, candidates: Iterable[Client], key: Callable[[Client], float]) -> None:
        ordered = sorted(candidates, key=key)
        for each in ordered[: 1 + len(ordered) // EVICT_FRACTION]:
            self._evict_one(each)

    def _evict_one(self, client: Client) -> None:
        metrics.CLIENTS_EVICTED.inc()
        self.remove(client)  # at once: its connection may take a moment to close
        client.close()


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
