"""One request and its response, which is sent in one piece."""

import asyncio
import time

from uvicorn._types import ASGISendEvent
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.extras.http.backoff import Backoff
from service.web.arrival import Arrival

LARGE = 65_536  # bytes of a response that are not copied: all clients of /docs share one copy of its scripts


class _WriteBuffer:
    """Takes what a response writes in a `with` block, and sends it at its end."""

    __slots__ = ("_parts", "_response", "_transport")

    def __init__(self, response: RequestResponseCycle) -> None:
        self._response = response
        self._transport = response.transport
        self._parts: list[bytes] = []

    def __enter__(self) -> None:
        self._response.transport = self  # type: ignore[assignment] # as much of one as is used here

    def __exit__(self, *_: object) -> None:
        self._response.transport = self._transport
        self._flush()

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def close(self) -> None:
        """Send what there is. The protocol closes: it knows whether the client is still sending."""
        self._flush()

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def _flush(self) -> None:
        parts, self._parts = self._parts, []
        if sum(map(len, parts)) > LARGE:
            self._transport.writelines(parts)
        elif parts:  # nothing is written for a client that has left, and nothing can be
            self._transport.write(b"".join(parts))


class CoalescedResponse(RequestResponseCycle):
    """Keeps the head until the body comes: sent one by one they cost a tenth of a request.

    So an application that fails between the two is answered 500, and not with half a response.
    """

    arrival: Arrival
    backoff: Backoff  # of responses that took no thread
    status = 0
    sent_bytes = 0
    _start: ASGISendEvent | None = None
    _resumed: asyncio.Event | None = None  # while the response waits in the back-off

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
        with _WriteBuffer(self):
            await super().send(start)
            await super().send(message)

    def cancel_backoff(self) -> None:
        """Send at once a response that waits: the client has left, or the service stops."""
        if self._resumed:
            self.backoff.cancel(self._resumed.set)
            self._resumed.set()

    async def _back_off(self) -> None:
        """Delay the last response on a connection: when the client has it, it is free to connect again."""
        if not self.arrival.admitted and not self.disconnected:
            self._resumed = asyncio.Event()
            if self.backoff.enter(self._resumed.set, answered_at=time.monotonic()):
                await self._resumed.wait()
