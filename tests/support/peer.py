"""A client's end of one connection: it sends any bytes, and leaves as it is told. Fast, and on an event loop."""

import asyncio
import json
import re
import socket
import struct
from dataclasses import dataclass
from typing import Any, Self

LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    body: bytes
    closes: bool  # the service says that it will close the connection

    def json(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.status} {self.json()['code']}" if self.status >= 400 else str(self.status)


class Peer:
    """A connection, until `leave()`."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._loop = asyncio.get_running_loop()
        self._received = b""

    @classmethod
    async def to(cls, address: tuple[str, int], buffer: int = 0) -> Self:
        """Connect; with a receive buffer of so many bytes, which fills up soon when nobody reads."""
        unconnected = socket.socket()
        unconnected.settimeout(0)
        unconnected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if buffer:
            unconnected.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        await asyncio.get_running_loop().sock_connect(unconnected, address)
        return cls(unconnected)

    async def send(self, request: bytes) -> None:
        await self._loop.sock_sendall(self._socket, request)

    async def receive(self, at_most: int = 262_144) -> bytes:
        received = await self._loop.sock_recv(self._socket, at_most)
        assert received, "the service closed the connection"
        return received

    async def answer(self) -> Answer:
        """Wait for a whole answer."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self._received += await self.receive()
        head = self._received[: end + 2]
        length = LENGTH.search(head)
        whole = end + 4 + (int(length[1]) if length else 0)
        while len(self._received) < whole:
            self._received += await self.receive()
        body, self._received = self._received[end + 4 : whole], self._received[whole:]
        return Answer(int(head[9:12]), body, b"\r\nconnection: close\r\n" in head)

    def leave(self, *, reset: bool = False) -> None:
        """Close politely (FIN), or as a process that crashed (RST)."""
        if reset:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()
