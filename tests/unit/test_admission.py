"""The queue before the threads, on a real event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest

from service.web.admission import Admission, Overloaded, expiring

LONG = 60.0  # seconds: longer than a test


class Crowd:
    """Requests that come for a place, hold it until they are told to leave, and note what happened."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.inside: list[int] = []
        self.entered: list[int] = []
        self.refused: list[int] = []
        self.most = 0
        self._leave: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def come(self, *names: int, low_priority: bool = False) -> None:
        for name in names:
            self._leave[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._hold(name, low_priority=low_priority))
            await settle()

    async def leave(self, *names: int) -> None:
        for name in names:
            self._leave[name].set()
        await settle()

    async def _hold(self, name: int, *, low_priority: bool) -> None:
        try:
            permit = await self.admission.acquire(time.monotonic() + self.admission.wait, low_priority=low_priority)
        except Overloaded:
            self.refused.append(name)
            return
        self.entered.append(name)
        self.inside.append(name)
        self.most = max(self.most, len(self.inside))
        try:
            await self._leave[name].wait()
        finally:
            self.inside.remove(name)
            permit.release()

    async def go_home(self) -> None:
        """Everybody leaves; then every place must be free, and nobody wait."""
        for event in self._leave.values():
            event.set()
        async with asyncio.timeout(10):
            for task in self.tasks.values():
                with suppress(asyncio.CancelledError):
                    await task
        assert (self.admission.in_flight, self.admission.waiting) == (0, 0)
        assert self.most <= self.admission.limit + self.admission.backlog


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def crowd(
    limit: int, *, backlog: int = 0, queue_length: int = 10, queue_wait: float = LONG
) -> Callable[[Callable[[Crowd], Coroutine[Any, Any, None]]], None]:
    """Run a scene with a crowd before so many places, then send everybody home."""

    async def play(scene: Callable[[Crowd], Coroutine[Any, Any, None]]) -> None:
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        admission = Admission(limit, backlog=backlog, name="threads", queue_length=queue_length, queue_wait=queue_wait)
        crowd = Crowd(admission)
        async with expiring(admission.expire):
            await scene(crowd)
            await crowd.go_home()
        assert errors == []

    return lambda scene: asyncio.run(play(scene))


def test_no_more_than_the_limit_are_inside_and_the_others_come_in_their_order() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(*range(8))
        assert crowd.inside == [0, 1, 2]
        assert (crowd.admission.in_flight, crowd.admission.waiting) == (3, 5)
        await crowd.leave(1)
        assert crowd.inside == [0, 2, 3]
        await crowd.leave(0, 2, 3)
        assert crowd.inside == [4, 5, 6]
        await crowd.leave(4, 5, 6)
        assert crowd.entered == list(range(8))

    crowd(limit=3)(scene)
    crowd(limit=2, backlog=1)(scene)


def test_who_comes_when_the_queue_is_full_is_refused_at_once() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(*range(6))
        assert (crowd.inside, crowd.refused, crowd.admission.waiting) == ([0, 1], [5], 3)
        await crowd.leave(0)
        await crowd.come(6)  # there is room in the queue again
        assert (crowd.refused, crowd.admission.waiting) == ([5], 3)

    crowd(limit=2, queue_length=3)(scene)


def test_a_queue_of_no_length_refuses_whoever_finds_no_place() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1)
        assert (crowd.inside, crowd.refused) == ([0], [1])
        await crowd.leave(0)
        await crowd.come(2)
        assert crowd.inside == [2]

    crowd(limit=1, queue_length=0)(scene)


def test_who_waits_too_long_is_refused_and_keeps_nobody_back() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1, 2)
        async with asyncio.timeout(10):
            await asyncio.gather(crowd.tasks[1], crowd.tasks[2])
        assert crowd.refused == [1, 2]
        await crowd.come(3)
        await crowd.leave(0)
        assert crowd.inside == [3]

    crowd(limit=1, queue_wait=0.05)(scene)


def test_who_is_cancelled_in_the_queue_leaves_it() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1, 2)
        crowd.tasks[1].cancel()
        await settle()
        assert crowd.admission.waiting == 1
        await crowd.leave(0)
        assert crowd.inside == [2]

    crowd(limit=1)(scene)


def test_who_is_cancelled_inside_gives_the_place_to_the_next() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1)
        crowd.tasks[0].cancel()
        await settle()
        assert crowd.inside == [1]

    crowd(limit=1)(scene)


def test_a_place_given_at_the_moment_of_the_cancellation_goes_to_the_next() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1, 2)
        crowd.tasks[0].cancel()  # gives its place to 1, who is cancelled before it runs
        await asyncio.sleep(0)
        crowd.tasks[1].cancel()
        await settle()
        assert crowd.inside == [2]

    crowd(limit=1)(scene)


def test_who_is_cancelled_just_before_a_place_is_free_is_passed_over() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1, 2)
        crowd.tasks[0].cancel()
        crowd.tasks[1].cancel()  # still in the queue when 0, who runs first, gives its place back
        await settle()
        assert crowd.inside == [2]

    crowd(limit=1)(scene)


def test_who_is_cancelled_just_as_its_wait_is_over_gives_back_no_place_that_it_never_had() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0, 1)
        while crowd.admission.waiting:  # noqa: ASYNC110 - until its time is over, before its task runs again
            await asyncio.sleep(0)
        crowd.tasks[1].cancel()
        await settle()
        assert (crowd.inside, crowd.admission.free) == ([0], 0)

    crowd(limit=1, queue_wait=0.05)(scene)


@pytest.mark.parametrize("limit", [1, 4])
def test_no_place_is_lost_or_made_by_a_thousand_requests_of_which_many_are_cancelled(limit: int) -> None:
    async def scene(crowd: Crowd) -> None:
        for name in range(1000):
            await crowd.come(name)
            if name % 3 == 0:
                crowd.tasks[name // 2].cancel()
            if name % 5 == 0:
                crowd.tasks[name].cancel()
            if name % 2 == 0:
                await crowd.leave(name // 3)
            assert crowd.admission.free >= 0

    crowd(limit, queue_wait=0.002)(scene)


def test_requests_of_low_priority_come_last_and_make_room_for_others() -> None:
    async def scene(crowd: Crowd) -> None:
        await crowd.come(0)
        await crowd.come(1, 2, low_priority=True)
        assert crowd.admission.full
        await crowd.come(3, low_priority=True)
        assert crowd.refused == [3]
        await crowd.come(4)
        assert crowd.refused == [3, 2], "the newest of low priority makes room"
        await crowd.leave(0)
        assert crowd.inside == [4]
        await crowd.leave(4)
        assert crowd.inside == [1]

    crowd(limit=1, queue_length=2)(scene)
