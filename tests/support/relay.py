"""Something between the service and PostgreSQL that does not take the options of a connection, as poolers do."""

import socket
import struct
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self

SSL_REQUESTS = (80877103, 80877104)  # SSL and GSSAPI, which it declines


def parameter_status(name: str, value: str) -> bytes:
    """Return the message with which PostgreSQL reports a parameter."""
    return b"S" + struct.pack("!i", len(name) + len(value) + 6) + f"{name}\0{value}\0".encode()


def error_response(sqlstate: str, message: str) -> bytes:
    """Return an error as PostgreSQL sends it; without `sqlstate` as some poolers do."""
    fields = f"SFATAL\0{f'C{sqlstate}' + chr(0) if sqlstate else ''}M{message}\0\0".encode()
    return b"E" + struct.pack("!i", len(fields) + 4) + fields


class Relay:
    """Passes connections on to `port`; `answer` is what one with options gets in place of that.

    An empty answer closes the connection, and None leaves it waiting.
    """

    def __init__(self, port: int, answer: bytes | None = b"", *, refuses: bool = True) -> None:
        self._target = port
        self.answer = answer
        self.refuses = refuses
        self.recovers = False  # when a connection without options comes
        self.replaced = (b"", b"")  # what PostgreSQL sends, and what the service gets in its place
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """End every connection."""
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._open.append(client)
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError, struct.error), client:
            code, packet = SSL_REQUESTS[0], b""
            while code in SSL_REQUESTS:
                packet = client.recv(4, socket.MSG_WAITALL)
                packet += client.recv(struct.unpack("!i", packet)[0] - 4, socket.MSG_WAITALL)
                code = struct.unpack("!i", packet[4:8])[0]
                if code in SSL_REQUESTS:
                    client.sendall(b"N")
            if self.recovers and b"\0options\0" not in packet:
                self.refuses = False
            if self.refuses and b"\0options\0" in packet:
                if self.answer is None:
                    client.recv(1)  # until the client gives up
                else:
                    client.sendall(self.answer)
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                self._open.append(server)
                server.sendall(packet)
                threading.Thread(target=_pump, args=[client, server], daemon=True).start()
                _pump(server, client, self.replaced)


def _pump(source: socket.socket, target: socket.socket, replaced: tuple[bytes, bytes] = (b"", b"")) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data.replace(*replaced) if replaced[0] else data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
