"""Clients that make a server keep as much as they can: each sends bytes as fast as they are taken, and may not read."""

import select
import socket
import time
from collections.abc import Callable
from typing import NamedTuple

from tests.bench.rude import allow_open_files

LOOK = 0.25  # seconds between two calls of `look`
BATCH = 200  # clients that come before those that are there are seen to
GONE = select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP


class Flood(NamedTuple):
    clients: int
    sends: bytes  # once over each connection
    repeats: bytes = b""  # then, without end
    reads: bool = False


class _Client:
    def __init__(self, address: tuple[str, int], flood: Flood) -> None:
        self._flood = flood
        self._left = memoryview(flood.sends)
        self.sent = 0  # bytes
        self.socket = socket.socket()
        self.socket.settimeout(0)
        self.socket.connect_ex(address)  # an error is an event

    @property
    def events(self) -> int:
        """What to wait for."""
        wants = select.EPOLLOUT if self._left or self._flood.repeats else 0
        return wants | select.EPOLLRDHUP | (select.EPOLLIN if self._flood.reads else 0)

    def handle(self, events: int) -> bool:
        """Do what can be done now; return whether the connection lives."""
        if events & GONE:
            return False
        try:
            if events & select.EPOLLIN:
                self.socket.recv(65_536)
            if events & select.EPOLLOUT:
                self._left = self._left or memoryview(self._flood.repeats)
                sent = self.socket.send(self._left)
                self._left = self._left[sent:]
                self.sent += sent
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


def drown(address: tuple[str, int], flood: Flood, seconds: float, look: Callable[[], bool]) -> int:
    """Flood the server until the time is over or `look`, called again and again, is false. Return the bytes sent.

    A client whose connection is closed connects again.
    """
    allow_open_files()
    clients: dict[int, _Client] = {}
    sent = 0
    end = time.monotonic() + seconds
    looked = 0.0
    with select.epoll() as epoll:
        while (now := time.monotonic()) < end:
            if now > looked + LOOK:
                if not look():
                    break
                looked = time.monotonic()
            for _ in range(min(flood.clients - len(clients), BATCH)):
                client = _Client(address, flood)
                clients[client.socket.fileno()] = client
                epoll.register(client.socket, client.events)
            for number, events in epoll.poll(LOOK / 2, 500):
                client = clients[number]
                if client.handle(events):
                    epoll.modify(number, client.events)
                else:
                    sent += client.sent
                    clients.pop(number).socket.close()
    for client in clients.values():
        sent += client.sent
        client.socket.close()
    return sent
