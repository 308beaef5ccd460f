"""One request and its response, which leaves in one piece."""

import asyncio
import time

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.extras.http.backoff import Backoff

LARGE = 65_536  # bytes of a response that are not copied: all clients of /docs share one copy of its scripts


class _WriteBuffer:
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
        """Send what there is; the protocol closes, as it knows whether the client is still sending."""
        self.flush()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class CoalescedResponse(RequestResponseCycle):
    """Holds the head back until the body comes: sent one by one they cost a tenth of a request."""

    status = 0
    sent_bytes = 0
    backoff: Backoff | None = None  # of responses for which no thread was taken
    _start: ASGISendEvent | None = None
    _held: asyncio.Event | None = None  # the turn of a response that is held back

    async def send(self, message: ASGISendEvent) -> None:
        """Take a part of the response from the application."""
        if message["type"] == "http.response.start" and not self.response_started:
            self._start = message  # in place of an earlier one, to which no body came: the application failed
            self.status = message["status"]
            return
        if not self._start:
            await super().send(message)
            return
        start, self._start = self._start, None
        self.sent_bytes = len(message.get("body", b""))  # type: ignore[arg-type] # the only type of message that follows
        if not self.keep_alive:
            await self._back_off()
        transport = self.transport
        buffer = _WriteBuffer(transport)
        self.transport = buffer  # type: ignore[assignment] # as much of one as is asked for here
        try:
            await super().send(start)
            await super().send(message)
        finally:
            self.transport = transport
            buffer.flush()

    def release(self) -> None:
        """Hold back nothing any more: the client has left, or the service ends."""
        if self.backoff and self._held:
            self.backoff.cancel(self._held.set)
            self._held.set()

    async def _back_off(self) -> None:
        """Hold back the last response on its connection: when it has it, the client is free to connect again."""
        admitted = self.scope["arrival"].admitted  # type: ignore[typeddict-item] # put there by protocol.py
        if self.backoff and not admitted and not self.disconnected:
            self._held = asyncio.Event()
            if self.backoff.enter(self._held.set, answered_at=time.monotonic()):
                await self._held.wait()
