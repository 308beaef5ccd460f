"""Random requests, joined and split at random, under overload: each gets its own answer, and no body is run as one."""

import asyncio
import os
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

from tests.api.test_refusals import filled
from tests.support.postgres import Cluster
from tests.support.process import Service

STREAMS = int(os.environ.get("STREAMS", "200"))  # of requests, each on a connection of its own
AT_ONCE = 200  # most of them wait: a client that was refused is not read for a second
LONGEST = 4  # requests of a stream
PATIENCE = 120.0  # seconds for a stream

# One thread and no queue, so that most are refused.
SMALL = {"WORKER_THREADS": "1", "QUEUE_LENGTH": "0", "LOG_FORMAT": "json"}


@dataclass
class Stream:
    """Requests as they are sent, and the names of those that a server must see."""

    random: random.Random
    number: int
    sent: bytes = b""
    ids: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make them."""
        for place in range(self.random.randint(1, LONGEST)):
            self.ids.append(f"s{self.number}.{place}")
            self.sent += self._request(self.ids[-1])

    def _request(self, name: str) -> bytes:
        method = self.random.choice(["GET", "GET", "GET", "HEAD", "POST", "PATCH", "PUT", "DELETE"])
        paths = ["/users/5", "/users?limit=1", "/users", "/users/7?x=1", "/livez", "/nowhere", "/users/1/2", "/users/x"]
        lines = [f"{method} {self.random.choice(paths)} HTTP/1.1", "Host: x", f"X-Request-ID: {name}"]
        lines += self.random.sample(
            ["Origin: https://app.example.com", "Connection: keep-alive", "Content-Type: application/json",
             "Upgrade: h2c\r\nConnection: Upgrade", "Expect: 100-continue", "Accept: */*"],
            self.random.randint(0, 3),
        )  # fmt: skip
        body = self._body() if method not in {"GET", "HEAD"} or self.random.random() < 0.3 else None
        if body is None:
            return "\r\n".join([*lines, "", ""]).encode()
        if self.random.random() < 0.5:
            return "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""]).encode() + body
        return "\r\n".join([*lines, "Transfer-Encoding: chunked", "", ""]).encode() + self._chunked(body)

    def _body(self) -> bytes:
        """Return what looks like requests, to whoever has lost count."""
        inner = b"DELETE /users/5 HTTP/1.1\r\nHost: x\r\nX-Request-ID: smuggled\r\n\r\n"
        return self.random.choice(
            [b"", b"{}", inner, inner * 3, b"\r\n" * 5 + inner, b"0\r\n\r\n" + inner, b"x" * 9000]
        )

    def _chunked(self, body: bytes) -> bytes:
        chunks = b""
        while body:
            size = self.random.choice([1, 2, 5, 100, 10_000])
            part, body = body[:size], body[size:]
            chunks += b"%x\r\n%b\r\n" % (len(part), part)
        return chunks + b"0\r\n" + self.random.choice([b"", b"X-Trailer: 1\r\n"]) + b"\r\n"

    def pieces(self) -> list[bytes]:
        """Return what is sent, cut anywhere."""
        cuts = sorted(self.random.randint(0, len(self.sent)) for _ in range(self.random.randint(0, 8)))
        return [self.sent[a:b] for a, b in zip([0, *cuts], [*cuts, len(self.sent)], strict=True) if a < b]


async def run(url: str, stream: Stream) -> None:
    there = urlsplit(url)
    reader, writer = await asyncio.open_connection(there.hostname, there.port)
    last = f"GET /livez HTTP/1.1\r\nHost: x\r\nX-Request-ID: s{stream.number}.last\r\nConnection: close\r\n\r\n"

    async def send() -> None:
        for piece in [*stream.pieces(), last.encode()]:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(stream.random.choice([0, 0, 0.001, 0.01]))

    async with asyncio.timeout(PATIENCE):
        received, _ = await asyncio.gather(reader.read(), send())
    writer.close()
    found = re.findall(rb"\r\nx-request-id: (\S+)", received)
    assert [each.decode() for each in found] == [*stream.ids, f"s{stream.number}.last"], stream
    assert b"HTTP/1.1 500 " not in received


def play(service: Service, seed: int) -> None:
    async def all_of_them() -> None:
        free = asyncio.Semaphore(AT_ONCE)

        async def one(number: int) -> None:
            async with free:
                await run(service.url, Stream(random.Random(f"{seed} {number}"), number))

        await asyncio.gather(*(one(number) for number in range(STREAMS)))

    asyncio.run(all_of_them())
    assert "smuggled" not in service.log
    assert "Traceback" not in service.log


@pytest.mark.parametrize("seed", [random.SystemRandom().randint(0, 10**6)], ids=["random"])
def test_while_some_are_served_each_request_has_its_answer(
    cluster: Cluster, seed: int, record_figure: Callable[[str], None]
) -> None:
    with Service({**cluster.create_database().environment, **SMALL}) as service:
        play(service, seed)
    record_figure(f"{STREAMS} random streams of pipelined requests under overload: no body was run as a request")


@pytest.mark.parametrize("seed", [random.SystemRandom().randint(0, 10**6)], ids=["random"])
def test_while_none_is_served_each_request_has_its_refusal(cluster: Cluster, seed: int) -> None:
    with filled(cluster.create_database()) as service:
        play(service, seed)
