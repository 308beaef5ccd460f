"""Clients that ask for a mix of things, each one at a time over a connection that it keeps.

One that is refused comes again when Retry-After says, as real clients do: a loop of refusals would drown all else.
"""

import asyncio
import json
import random
import re
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

AGAIN = 1.0  # seconds before a client comes again that was not told when
LONGEST = 5.0  # seconds that it waits when it is told to wait longer
PATIENCE = 15.0  # seconds for an answer: REQUEST_DEADLINE and some more
CLEANING = 15.0  # seconds to delete the users in, at the most

NEVER = 2_147_483_000  # an id that no user has
KINDS = ("read", "read nobody", "list", "sign up")
SHARES = (600, 200, 197, 3)  # in a thousand: more sign-ups, of 19 ms of a core each, would wait for one another

LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d+)", re.IGNORECASE)
CLOSES = re.compile(rb"\r\nconnection: *close", re.IGNORECASE)
CODE = re.compile(rb'"code": *"([a-z-]+)"')


@dataclass(frozen=True)
class Address:
    """Where the service is."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    head: bytes
    body: bytes

    @property
    def code(self) -> str:
        found = CODE.search(self.body)
        return found[1].decode() if found else ""

    @property
    def again(self) -> float:
        """Seconds to wait as Retry-After says, and up to as much again, so that not all come back together."""
        found = RETRY_AFTER.search(self.head)
        return min(float(found[1]) if found else AGAIN, LONGEST) * (1 + random.random())


@dataclass
class Phase:
    """So many clients, and what came of the requests that they began meanwhile. Times are seconds."""

    name: str
    seconds: float
    clients: int
    thinks: float  # between an answer and the next request, on average
    accepted: list[float] = field(default_factory=list)  # how long each answer took
    refused: list[float] = field(default_factory=list)  # likewise
    failed: Counter[str] = field(default_factory=Counter)
    lasted: float = 0.0

    @property
    def ended(self) -> int:
        """How many requests have ended, in whatever way."""
        return len(self.accepted) + len(self.refused) + self.failed.total()


OVER = Phase("over", seconds=0, clients=0, thinks=0)


class Load:
    """The clients of a phase after another, and the users that they make."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._phase = OVER
        self._clients: dict[int, asyncio.Task[None]] = {}
        self._mark = token_hex(4)  # no other user has such an email
        self._emails = 0
        self._asking: set[int] = set()  # the clients that wait for an answer
        self.made: list[int] = []
        self.doubtful: set[str] = set()  # emails of sign-ups that may have been carried out
        self.deleted = 0

    @property
    def left(self) -> str:
        """Of the users that may have been left behind, one line; nothing when there are none."""
        number = len(self.made) + len(self.doubtful)
        emails = f"load-{self._mark}-1@example.com and so on"
        return f"users that may have been left behind: {number}, with the emails {emails}" if number else ""

    def begin(self, phase: Phase) -> None:
        """Have the clients of `phase`: those that there are go on, and any others go when they have their answer."""
        self._phase = phase
        for number in range(phase.clients):
            if number not in self._clients or self._clients[number].done():
                pause = random.random() * min(1.0, phase.seconds / 10)  # not all in one instant
                self._clients[number] = asyncio.create_task(self._client(number, pause))

    async def end(self) -> None:
        """Ask no more and wait for the answers, as they tell which users there are. Takes PATIENCE at the most."""
        self._phase = OVER
        for number, task in self._clients.items():
            if number not in self._asking:
                task.cancel()
        await asyncio.wait(self._clients.values())

    async def clean(self) -> None:
        """Delete the users that were made. Takes CLEANING at the most; `left` tells of those that are left."""
        client = Client(self._address, PATIENCE)
        with suppress(TimeoutError):
            async with asyncio.timeout(CLEANING):
                while email := next(iter(self.doubtful), ""):
                    found = await _insist(client, "GET", f"/users?email={email}")
                    self.made += [user["id"] for user in json.loads(found.body)]
                    self.doubtful.remove(email)
                while self.made:
                    await _insist(client, "DELETE", f"/users/{self.made[-1]}")
                    self.made.pop()
                    self.deleted += 1
        client.leave()

    async def _client(self, number: int, pause: float) -> None:
        client = Client(self._address, PATIENCE)
        try:
            while number < self._phase.clients:
                await asyncio.sleep(pause)
                if number < self._phase.clients:
                    self._asking.add(number)
                    pause = await self._ask(client, self._phase)
                    self._asking.remove(number)
        finally:
            client.leave()

    async def _ask(self, client: "Client", phase: Phase) -> float:
        """Ask for something, note what came of it, and return the seconds to wait before the next."""
        kind = random.choices(KINDS, SHARES)[0] if self._emails else "sign up"  # first, so that there is who is read
        method, path, body, email = "GET", f"/users/{NEVER}", None, ""
        if kind == "sign up":
            self._emails += 1
            email = f"load-{self._mark}-{self._emails}@example.com"
            method, path = "POST", "/users"
            body = {"fname": "Ada", "lname": "Load", "email": email, "password": token_hex(8)}
            self.doubtful.add(email)
        elif kind == "list":
            path = "/users?limit=20"
        elif kind == "read" and self.made:
            path = f"/users/{random.choice(self.made)}"
        try:
            answer = await client.ask(method, path, body)
        except TimeoutError:
            phase.failed[f"no answer in {PATIENCE:g} s"] += 1
        except ConnectionRefusedError:
            phase.failed["connection refused"] += 1
            self.doubtful.discard(email)
        except OSError:
            phase.failed["connection broken"] += 1
        else:
            return self._note(answer, phase, time.perf_counter() - client.began, email)
        return AGAIN * (1 + random.random())

    def _note(self, answer: Answer, phase: Phase, seconds: float, email: str) -> float:
        if answer.status in (200, 201, 404):
            phase.accepted.append(seconds)
            if answer.status == 201:
                self.made.append(json.loads(answer.body)["id"])
                self.doubtful.remove(email)
            return phase.thinks * 2 * random.random()
        if answer.code == "overloaded":
            phase.refused.append(seconds)
            self.doubtful.discard(email)  # nothing was done
        else:
            phase.failed[f"{answer.status} {answer.code}".strip()] += 1
        return answer.again


async def _insist(client: "Client", method: str, path: str) -> Answer:
    """Ask again and again until it is done, or there is nothing to do it to."""
    while True:
        pause = AGAIN
        with suppress(OSError):
            answer = await client.ask(method, path)
            if answer.status in (200, 204, 404):
                return answer
            pause = answer.again
        await asyncio.sleep(pause)


class Client:
    """Asks for one thing at a time, over a connection that is kept."""

    def __init__(self, address: Address, patience: float) -> None:
        self._address = address
        self._patience = patience  # seconds for an answer
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.began = 0.0  # when the last request was sent, by the performance counter

    async def ask(self, method: str, path: str, body: Any = None, *headers: str) -> Answer:
        """Send a request and return its answer. Raises OSError, of which TimeoutError is one."""
        content = b"" if body is None else json.dumps(body).encode()
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._address}", *headers]
        if content:
            lines += ["Content-Type: application/json", f"Content-Length: {len(content)}"]
        try:
            async with asyncio.timeout(self._patience):
                if not self._streams:
                    self._streams = await asyncio.open_connection(self._address.host, self._address.port)
                reader, writer = self._streams
                self.began = time.perf_counter()
                writer.write("\r\n".join([*lines, "", ""]).encode() + content)
                head = await reader.readuntil(b"\r\n\r\n")
                length = LENGTH.search(head)
                answer = Answer(int(head[9:12]), head, await reader.readexactly(int(length[1]) if length else 0))
        except (EOFError, ValueError, asyncio.LimitOverrunError) as exc:
            self.leave()
            raise ConnectionResetError from exc
        except BaseException:
            self.leave()  # what comes late is not the next one's answer
            raise
        if CLOSES.search(head):
            self.leave()
        return answer

    def leave(self) -> None:
        if self._streams:
            self._streams[1].close()
        self._streams = None
