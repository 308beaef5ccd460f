"""A steady load of mixed reads and writes, whose every answer is reconciled with the table afterwards."""

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

from tests.support.polling import until
from tests.support.postgres import TestDatabase

# What an error says in its detail, unless the connection broke, or was cut, under the write.
NOTHING = "Nothing was done"

# Seconds between a client's requests: without them all cores are busy, and what is late is late for that.
THINKS = 0.03


@dataclass(frozen=True)
class Answer:
    """What a request got, and when."""

    method: str
    began: float  # on the monotonic clock
    ended: float
    status: int  # 0: the connection to the service itself failed
    code: str
    detail: str

    @property
    def seconds(self) -> float:
        return self.ended - self.began


@dataclass
class Load:
    """`clients` threads, each creating, reading and changing users of its own, until the `with` block ends."""

    url: str
    clients: int = 8
    reconnecting: int = 0  # how many of them connect for each request
    answers: list[Answer] = field(default_factory=list)
    created: set[int] = field(default_factory=set)  # acknowledged
    refused: set[int] = field(default_factory=set)  # with NOTHING
    undecided: set[int] = field(default_factory=set)
    under_way: dict[int, float] = field(default_factory=dict)  # when the request began that each thread waits for

    def __enter__(self) -> Self:
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(self.clients)]
        for thread in self._threads:
            thread.start()
        until(lambda: self.statuses()[200] > self.clients, "the load runs")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a request never ended"

    def statuses(self, since: float = 0.0, method: str = "") -> Counter[int]:
        """Count the answers to requests that began after `since`, by status."""
        found = [answer for answer in list(self.answers) if answer.began >= since and method in answer.method]
        return Counter(answer.status for answer in found)

    def unexpected(self, expected: set[int], since: float = 0.0) -> Counter[str]:
        """Count the other answers to requests that began after `since`.

        A creation may be refused on a busy machine: it hashes, and hashing stands back for all else.
        """
        others = [each for each in list(self.answers) if each.began >= since and each.status not in expected]
        refusals = {"overloaded", "deadline-exceeded"}
        return Counter(
            f"{each.method} {each.status} {each.code}"
            for each in others
            if not (each.method == "POST" and each.code in refusals and NOTHING in each.detail)
        )

    def go_on(self, moment: float) -> None:
        """Wait until all that began before `moment` is answered, and some of what began after it."""
        until(lambda: min(self.under_way.values(), default=moment) >= moment, "nothing from before is under way")
        until(lambda: self.statuses(moment)[200] > 20, "the load goes on")

    def first(self, status: int, since: float) -> float:
        """Return how long after `since` the first answer with `status` came, in seconds."""
        return (
            min(answer.ended for answer in list(self.answers) if answer.status == status and answer.ended > since)
            - since
        )

    def first_write(self, since: float) -> float:
        """Return how long after `since` the first write succeeded, in seconds. A client creates one user in 0.5 s."""
        writes = [each for each in list(self.answers) if each.method != "GET" and each.status in (200, 201)]
        return min(each.ended for each in writes if each.ended > since) - since

    def reconcile(self, database: TestDatabase) -> None:
        """Compare every answer to a write with the table."""
        with database.connect() as conn:
            rows = {row[0] for row in conn.execute('SELECT id FROM public."user"')}
        assert self.created <= rows, f"acknowledged and lost: {sorted(self.created - rows)[:10]}"
        assert not self.refused & rows, f"refused and yet there: {sorted(self.refused & rows)[:10]}"

    def _run(self, number: int) -> None:
        user_id = 10 + number * 1_000_000
        there = 0  # the newest user that was created for sure
        limits = httpx.Limits(max_keepalive_connections=0 if number < self.reconnecting else None)
        with httpx.Client(base_url=self.url, timeout=30, limits=limits) as client:
            while not self._stopped.is_set():
                user_id += 1
                there = user_id if self._create(client, user_id) else there
                for _ in range(3):
                    for path in ("/users?limit=10", f"/users?after={user_id - 5}&limit=5"):
                        self._send(client, "GET", path)
                    if there:
                        self._send(client, "GET", f"/users/{there}")
                        self._send(client, "PATCH", f"/users/{there}", {"lname": f"Changed {user_id}"})

    def _create(self, client: httpx.Client, user_id: int) -> bool:
        user = {"id": user_id, "fname": "Ada", "lname": "Load", "email": f"{user_id}@example.com", "password": "p" * 8}
        answer = self._send(client, "POST", "/users", user)
        if answer.status == 201:
            self.created.add(user_id)
        else:
            (self.refused if NOTHING in answer.detail else self.undecided).add(user_id)
        return answer.status == 201

    def _send(self, client: httpx.Client, method: str, path: str, body: Any = None) -> Answer:
        self.under_way[threading.get_ident()] = began = time.monotonic()
        try:
            response = client.request(method, path, json=body)
        except httpx.TransportError as exc:
            answer = Answer(method, began, time.monotonic(), 0, type(exc).__name__, "")
        else:
            has_problem = response.headers.get("Content-Type") == "application/problem+json"  # a proxy's error has none
            problem = response.json() if has_problem else {"code": "", "detail": ""}
            ended = time.monotonic()
            answer = Answer(method, began, ended, response.status_code, problem["code"], problem["detail"])
        self.answers.append(answer)
        del self.under_way[threading.get_ident()]
        self._stopped.wait(THINKS)
        return answer
