"""A wire between the service and PostgreSQL that can be cut, slowed and swallowed."""

import asyncio
import socket
import struct
import threading
from types import TracebackType
from typing import Self


class Proxy:
    """Passes bytes on; what it does to the server's replies is set by its attributes, for every connection."""

    def __init__(self, port: int) -> None:
        """Lead to `port` on this machine."""
        self._target = port
        self.latency = 0.0  # seconds before each reply
        self.swallow = False  # pass nothing on, in either direction, and keep the connections open
        self.truncate = False  # pass on half of the next reply of each connection and close it
        self.reset = False  # in place of the next reply, or of its second half, end the connection with RST
        self._tasks: set[asyncio.Task[None] | None] = set()  # the loop itself would let them be collected
        self.damaged = 0  # how many replies were truncated or replaced by RST

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._server = self._loop.run_until_complete(asyncio.start_server(self._connect, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._server.close()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    def cut(self) -> None:
        """Close every connection."""
        self._loop.call_soon_threadsafe(lambda: [task.cancel() for task in self._tasks if task])

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        while tasks:  # one that ends may have begun another
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.sleep(0.05)  # what was closed is closed in the loop's next turns

    async def _connect(self, client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self._tasks.add(asyncio.current_task())
        try:
            server, to_server = await asyncio.open_connection("127.0.0.1", self._target)
        except (OSError, asyncio.CancelledError):
            to_client.close()
            return
        requests = asyncio.ensure_future(self._pass(client, to_server, reply=False))
        try:
            await self._pass(server, to_client, reply=True)
        finally:
            requests.cancel()
            to_server.close()
            to_client.close()

    async def _pass(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, reply: bool) -> None:
        try:
            while data := await source.read(65536):
                while self.swallow:  # noqa: ASYNC110 - set by another thread
                    await asyncio.sleep(0.01)
                if reply:
                    await asyncio.sleep(self.latency)
                    if self.truncate or self.reset:
                        self.damaged += 1
                        await self._damage(data, target)
                        return
                target.write(data)
                await target.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        if not reply:
            target.close()

    async def _damage(self, data: bytes, target: asyncio.StreamWriter) -> None:
        if self.truncate:
            target.write(data[: len(data) // 2])
            await target.drain()
        if self.reset:
            linger = struct.pack("ii", 1, 0)  # close() then sends RST
            target.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
