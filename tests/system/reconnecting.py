"""Clients that connect for each request and do not say so: they leave when they have their answer. wrk has none."""

import asyncio
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import urlsplit

import uvloop


@contextmanager
def reconnecting(url: str, request: str, clients: int) -> Iterator[None]:
    """Have so many of them, in a process of their own, while the block runs."""
    process = multiprocessing.get_context("spawn").Process(target=_run, args=(url, request.encode(), clients))
    process.start()
    try:
        yield
    finally:
        process.kill()
        process.join()


def _run(url: str, request: bytes, clients: int) -> None:
    there = urlsplit(url)

    async def client() -> None:
        while True:
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(there.hostname, there.port)
                writer.write(request)
                await reader.read(65536)
                writer.transport.abort()  # not kept in TIME_WAIT

    async def all_of_them() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    uvloop.run(all_of_them())
