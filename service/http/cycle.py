"""One request and its answer, which leaves in one piece."""

import asyncio

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

LARGE = 65_536  # bytes of an answer that are not copied: of the scripts of /docs, all that are sent share one copy


class _Joined:
    """Holds back what is written, to send it in one piece."""

    __slots__ = ("_parts", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:  # to a client that has left nothing is written, and nothing can be
            parts, self._parts = self._parts, []
            if sum(map(len, parts)) > LARGE:
                self._transport.writelines(parts)
            else:
                self._transport.write(b"".join(parts))

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Cycle(RequestResponseCycle):
    """One request and its answer, whose head waits for its body: sent one by one they cost a tenth of a request."""

    _start: ASGISendEvent | None = None

    async def send(self, message: ASGISendEvent) -> None:
        """Take a part of the answer from the application."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # in place of an earlier one, to which no body came: the application failed
            return
        if not self._start:
            await super().send(message)
            return
        start, self._start = self._start, None
        transport = self.transport
        joined = _Joined(transport)
        self.transport = joined  # type: ignore[assignment] # as much of one as is asked for here
        try:
            await super().send(start)
            await super().send(message)
        finally:
            self.transport = transport
            joined.flush()
