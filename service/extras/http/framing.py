"""Where each message in a stream of bytes ends (RFC 9112). Parses no field and does no I/O."""

import re
from collections.abc import Iterator

MAX_HEAD = 65_536  # bytes: eight times what browsers and proxies send
MAX_TARGET = 32_768  # bytes of a path and its query: 64,000 % are decoded in 20 ms
MAX_HEADERS = 100  # as Apache's LimitRequestFields: 13,000 of three bytes each took 17 ms and 1.6 MiB
CHUNKED_SLICE = 4096  # bytes of a chunked body that are parsed at a time: made to be slow, they take 6 ms
CHUNKED = -1

END_OF_HEAD = b"\r\n\r\n"
END_OF_CHUNKS = re.compile(rb"[^\n]\r\n\r\n")  # or the same bytes inside a chunk
REQUEST_LINE = re.compile(rb"([A-Z-]+) ([!-~]+) HTTP/1\.[01]\r\n")  # RFC 9112, 3
BEGINNING = re.compile(rb"[A-Z-]{1,24}(?: |$)")  # of a request line that is not complete

# To be ignored, as we switch to no other protocol (RFC 9110, 7.8). The parser takes what follows for that protocol.
UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*", re.IGNORECASE)


class Malformed(Exception):
    """The bytes are no HTTP request."""


class HeadTooLarge(Exception):
    """The head is over one of the limits."""


def without_upgrade(head: bytes) -> bytes:
    """Return a head without its Upgrade fields."""
    return UPGRADE.sub(b"", head)


class Framing:
    """The bytes of one client that are not parsed yet."""

    def __init__(self) -> None:
        self.buffer = b""
        self.body_left = 0  # bytes of the current body that are not taken yet, or CHUNKED; set by the parser
        self._tail = b""  # the last four bytes taken of a chunked body

    def take_head(self) -> bytes:
        """Take a whole head, or nothing while it is not complete. Raises Malformed, HeadTooLarge."""
        buffer = self.buffer = self.buffer.lstrip(b"\r\n")  # RFC 9112, 2.2
        end = buffer.find(END_OF_HEAD) + len(END_OF_HEAD)
        complete = end >= len(END_OF_HEAD)
        if not complete:
            end = len(buffer)
        lines = buffer.count(b"\n", 0, end)
        if buffer and not (REQUEST_LINE if lines else BEGINNING).match(buffer):
            raise Malformed
        if end > MAX_HEAD or lines > MAX_HEADERS + 2 or buffer.find(b" HTTP", 0, end) > MAX_TARGET:
            raise HeadTooLarge
        if not complete:
            return b""
        self.buffer = buffer[end:]
        self._tail = b""
        return buffer[:end]

    def take_body(self) -> Iterator[bytes]:
        """Take what has come of the body, or a slice of a chunked one, in pieces with nothing behind the body.

        A chunked body ends when the parser of these pieces has set `body_left` to 0.
        """
        if self.body_left > 0:
            piece, self.buffer = self.buffer[: self.body_left], self.buffer[self.body_left :]
            self.body_left -= len(piece)
            yield piece
            return
        data = self._tail + self.buffer[:CHUNKED_SLICE]
        taken, searched = len(self._tail), 0
        while self.body_left and taken < len(data):
            found = END_OF_CHUNKS.search(data, searched)
            end = found.end() if found else len(data)
            yield data[taken:end]
            taken = searched = end
        self.buffer = data[taken:] + self.buffer[CHUNKED_SLICE:]
        self._tail = data[max(0, taken - 4) : taken]
