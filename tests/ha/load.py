"""A load of a fixed rate, whose writes are all reconciled with the table afterwards.

A request is sent when its time has come, whether the earlier ones are answered or not: so the time that writes stand
still is seen as it is, and not as clients that wait for an answer would see it.
"""

import asyncio
import itertools
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

import httpx
import psycopg

from tests.support.load import NOTHING, Answer

READS, PATCHES, CREATES = 15, 8, 2  # a second; every other create has an Idempotency-Key
SEEDED = 500  # users that are there before the load
PATIENCE = 15.0  # seconds for an answer: longer than REQUEST_DEADLINE
AGAIN = 1.0  # seconds before a create is sent again with its key

SUCCESS = (200, 201)
USER = {"fname": "Ada", "lname": "Load", "password": "p" * 8}


Kind = Literal["reads", "writes"]


@dataclass
class Reconciliation:
    """What the table says of the writes."""

    lost: list[str]  # acknowledged, and not there
    done: list[str]  # refused, and there all the same


@dataclass
class Load:
    """Reads, creates and patches for the instances at `urls`, in turn, until the `with` block ends.

    It has SEEDED users of its own, with the ids from `first` on.
    """

    urls: Sequence[str]
    first: int
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._creates: dict[str, Answer] = {}  # by email
        self._names: dict[int, str] = {}  # by id: the last one that was acknowledged
        self._undecided_names: dict[int, str] = {}
        self._refused_names: set[str] = set()
        self._numbers = itertools.count(1)
        self._changeable = deque(range(self.first, self.first + SEEDED))
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join(3 * PATIENCE)
        assert not self._thread.is_alive(), "a request never ended"

    def seed(self, conn: psycopg.Connection) -> None:
        """Insert the users that the load reads and changes."""
        conn.execute(
            'INSERT INTO public."user" (id, fname, lname, email, password_hash)'
            " SELECT id, 'Ada', 'Load', 'seed-' || id || '@example.com', '$argon2id$'"
            " FROM generate_series(%s::int, %s) AS id",
            [self.first, self.first + SEEDED - 1],
        )

    def successes(self, kind: Kind, since: float = 0.0) -> list[float]:
        """Return when requests succeeded after `since`, in order."""
        return sorted(each.ended for each in self._of(kind) if each.status in SUCCESS and each.ended > since)

    def failures(self, kind: Kind) -> int:
        """Count the requests that failed."""
        return sum(each.status not in SUCCESS for each in self._of(kind))

    def unexpected(self) -> Counter[str]:
        """Count the answers that no fault explains, such as a 500. One that was not received is a failure only."""
        return Counter(
            f"{each.method} {each.status} {each.code}"
            for each in self.answers
            if each.status not in (0, *SUCCESS, 503, 504)
        )

    def reconcile(self, conn: psycopg.Connection) -> Reconciliation:
        """Compare every answer to a write with the table."""
        users: dict[str, str] = dict(conn.execute('SELECT email, lname FROM public."user"').fetchall())
        lost = [email for email, answer in self._creates.items() if answer.status == 201 and email not in users]
        done = [email for email, answer in self._creates.items() if NOTHING in answer.detail and email in users]
        for user_id in range(self.first, self.first + SEEDED):
            name = users[f"seed-{user_id}@example.com"]
            if name in self._refused_names:
                done.append(f"{user_id}: {name}")
            elif name not in (self._names.get(user_id, "Load"), self._undecided_names.get(user_id)):
                lost.append(f"{user_id}: {self._names[user_id]}")
        return Reconciliation(lost, done)

    def _of(self, kind: Kind) -> list[Answer]:
        return [answer for answer in list(self.answers) if (answer.method == "GET") == (kind == "reads")]

    async def _run(self) -> None:
        kinds = [self._read] * READS + [self._patch] * PATCHES + [self._create] * (CREATES // 2)
        kinds += [self._create_with_key] * (CREATES // 2)
        random.Random(self.first).shuffle(kinds)
        urls = itertools.cycle(self.urls)
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=PATIENCE, limits=limits) as self._client, asyncio.TaskGroup() as group:
            due = time.monotonic()
            for kind in itertools.cycle(kinds):
                if self._stopped.is_set():
                    break
                group.create_task(kind(next(urls)))
                due = max(due + 1 / len(kinds), time.monotonic() - 0.1)  # no crowd after this process stood still
                await asyncio.sleep(due - time.monotonic())

    async def _read(self, url: str) -> None:
        await self._send(url, "GET", f"/users/{random.randrange(self.first, self.first + SEEDED)}")

    async def _create(self, url: str) -> None:
        user = self._new_user()
        self._creates[user["email"]] = await self._send(url, "POST", "/users", user)

    async def _create_with_key(self, url: str) -> None:
        """Send it until it is acknowledged, as the README tells clients to."""
        user = self._new_user()
        while True:
            is_last = self._stopped.is_set()
            answer = await self._send(url, "POST", "/users", user, {"Idempotency-Key": user["email"]})
            if answer.status == 201:
                self._creates[user["email"]] = answer
            if answer.status == 201 or is_last:
                return
            await asyncio.sleep(AGAIN)

    async def _patch(self, url: str) -> None:
        """Change a user that no other patch is changing, so that the order of its names is known."""
        if not self._changeable:
            return
        user_id = self._changeable.popleft()
        name = f"Changed {next(self._numbers)} of {self.first}"
        answer = await self._send(url, "PATCH", f"/users/{user_id}", {"lname": name})
        if answer.status == 200:
            self._names[user_id] = name
            self._changeable.append(user_id)
        elif NOTHING in answer.detail:  # not changed again: a second change would hide that this one was made
            self._refused_names.add(name)
        else:
            self._undecided_names[user_id] = name

    def _new_user(self) -> dict[str, str]:
        return {**USER, "email": f"{next(self._numbers)}-of-{self.first}@example.com"}

    async def _send(
        self, url: str, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        began = time.monotonic()
        try:
            response = await self._client.request(method, f"{url}{path}", json=body, headers=headers)
        except httpx.TransportError as exc:
            answer = Answer(method, began, time.monotonic(), 0, type(exc).__name__, "")
        else:
            problem = {"code": "", "detail": "", **(response.json() if response.is_error else {})}
            answer = Answer(method, began, time.monotonic(), response.status_code, problem["code"], problem["detail"])
        self.answers.append(answer)
        return answer
