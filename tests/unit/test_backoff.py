"""Connections that wait before they are read again, on a real event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

from service.extras.http.backoff import Backoff

SLOW = 0.01  # a second: that is, not within a test
LONG = 60.0


@dataclass
class Connections:
    """Connections, and the order in which they resume."""

    backoff: Backoff
    resumed: list[int] = field(default_factory=list)

    def enter(self, *names: int) -> list[bool]:
        return [self.backoff.enter(partial(self.resumed.append, name), answered_at=time.monotonic()) for name in names]

    async def until(self, resumed: list[int]) -> None:
        async with asyncio.timeout(10):
            while self.resumed != resumed:  # noqa: ASYNC110 - it is what is tested that must come about
                await asyncio.sleep(0.001)


class Room:
    """Whether there is room."""

    def __init__(self, *, there_is: bool) -> None:
        self.there_is = there_is

    def __call__(self) -> bool:
        return self.there_is


def play(scene: Callable[[Connections], Coroutine[Any, Any, None]], room: Room, **options: float) -> None:
    async def run() -> None:
        served = count()
        backoff = Backoff(
            rate=options.get("rate", SLOW),
            share=options.get("share", 0),
            served=lambda: next(served),
            has_room=room,
            longest=options.get("longest", LONG),
            pause=options.get("pause", 0),
        )
        await scene(Connections(backoff))

    asyncio.run(run())


def test_nobody_waits_while_there_is_room() -> None:
    async def scene(connections: Connections) -> None:
        assert connections.enter(1, 2, 3) == [False] * 3

    play(scene, Room(there_is=True), pause=LONG)


def test_without_room_they_resume_in_their_order_at_the_rate() -> None:
    async def scene(connections: Connections) -> None:
        began = time.monotonic()
        assert connections.enter(*range(20)) == [True] * 20
        await connections.until(list(range(20)))
        assert time.monotonic() - began >= 0.19

    play(scene, Room(there_is=False), rate=100)


def test_who_comes_again_after_the_pause_does_not_wait() -> None:
    async def scene(connections: Connections) -> None:
        assert not connections.backoff.enter(partial(connections.resumed.append, 1), answered_at=time.monotonic() - 1)

    play(scene, Room(there_is=False), pause=1)


def test_none_resumes_within_the_pause() -> None:
    async def scene(connections: Connections) -> None:
        began = time.monotonic()
        connections.enter(1, 2)
        await connections.until([1, 2])
        assert time.monotonic() - began >= 0.2

    play(scene, Room(there_is=False), rate=10_000, pause=0.2)


def test_a_costly_answer_keeps_the_next_connections_for_longer() -> None:
    async def scene(connections: Connections) -> None:
        began = time.monotonic()
        connections.backoff.enter(partial(connections.resumed.append, 1), cost=20, answered_at=began)
        connections.enter(2)
        await connections.until([1, 2])
        assert time.monotonic() - began >= 0.2

    play(scene, Room(there_is=False), rate=100)


def test_they_have_a_share_of_what_is_served() -> None:
    """Each look finds one more served."""

    async def scene(connections: Connections) -> None:
        connections.enter(*range(20))
        await connections.until(list(range(20)))

    play(scene, Room(there_is=False), rate=0, share=2)


def test_they_resume_in_their_order_as_soon_as_there_is_room() -> None:
    room = Room(there_is=False)

    async def scene(connections: Connections) -> None:
        connections.enter(*range(100))
        room.there_is = True
        assert connections.enter(100) == [True]  # behind those that wait
        await connections.until(list(range(101)))
        assert connections.enter(101) == [False]

    play(scene, room, pause=LONG)


def test_a_connection_that_has_ended_does_not_resume() -> None:
    room = Room(there_is=False)

    async def scene(connections: Connections) -> None:
        gone = partial(connections.resumed.append, 1)
        connections.backoff.enter(gone, answered_at=time.monotonic())
        connections.enter(2)
        connections.backoff.cancel(gone)
        room.there_is = True
        await connections.until([2])

    play(scene, room, pause=LONG)


def test_none_waits_for_longer_than_the_longest() -> None:
    async def scene(connections: Connections) -> None:
        connections.enter(*range(50))
        await connections.until(list(range(50)))

    play(scene, Room(there_is=False), longest=0.1)


def test_what_a_connection_cost_that_has_ended_is_held_against_the_others() -> None:
    async def scene(connections: Connections) -> None:
        before = connections.backoff.in_debt
        connections.backoff.charge(20)
        assert (before, connections.backoff.in_debt) == (False, True)
        began = time.monotonic()
        connections.enter(1)
        await connections.until([1])
        assert time.monotonic() - began >= 0.19

    play(scene, Room(there_is=False), rate=100)
