"""HTTP as bytes, for what no client library sends or shows."""

import json
import socket
from email.message import Message
from email.parser import BytesHeaderParser
from typing import Any
from urllib.parse import urlsplit


class Answer:
    """What came back, with nothing tidied up."""

    def __init__(self, received: bytes) -> None:
        """Take the bytes apart."""
        head, _, self.content = received.partition(b"\r\n\r\n")
        status, _, headers = head.partition(b"\r\n")
        assert status.startswith(b"HTTP/1.1 "), f"no answer: {received!r}"
        self.status_code = int(status.split()[1])
        self.headers: Message[str, str] = BytesHeaderParser().parsebytes(headers)

    @property
    def text(self) -> str:
        """The body."""
        return self.content.decode()

    def json(self) -> Any:
        """Return the body's value."""
        return json.loads(self.content)


def connect(url: str, buffer: int = 0) -> socket.socket:
    """Connect to the service at `url`; with a `buffer` of so many bytes, which is soon full when nobody reads."""
    peer = socket.socket()
    if buffer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    peer.settimeout(30)
    peer.connect((urlsplit(url).hostname, urlsplit(url).port))
    return peer


def exchange(url: str, request_line: str, *headers: str, body: bytes = b"") -> Answer:
    """Send exactly this and return everything that comes until the server closes."""
    lines = [request_line, "Host: test", "Connection: close", *headers]
    with connect(url) as peer:
        peer.sendall("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body)
        return Answer(b"".join(iter(lambda: peer.recv(65536), b"")))
