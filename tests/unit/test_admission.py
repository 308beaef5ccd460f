"""The queue before the threads, on a real event loop."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from prometheus_client import REGISTRY

from service.web.admission import TICK, Admission, Overloaded, Permit, expiring

LONG = 60.0  # seconds: longer than a test


class Clients:
    """Requests that ask for a permit, hold it until they may finish, and note what happened."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self.at_work: list[int] = []
        self.admitted: list[int] = []
        self.refused: list[int] = []
        self.most_at_work = 0
        self._may_finish: dict[int, asyncio.Event] = {}
        self.tasks: dict[int, asyncio.Task[None]] = {}

    async def arrive(self, *names: int, low_priority: bool = False, is_write: bool = False) -> None:
        for name in names:
            self._may_finish[name] = asyncio.Event()
            self.tasks[name] = asyncio.create_task(self._hold(name, low_priority=low_priority, is_write=is_write))
            await settle()

    async def finish(self, *names: int) -> None:
        for name in names:
            self._may_finish[name].set()
        await settle()

    async def _hold(self, name: int, *, low_priority: bool, is_write: bool) -> None:
        until = time.monotonic() + self.admission.wait
        try:
            permit = await self.admission.acquire(until, low_priority=low_priority, is_write=is_write)
        except Overloaded:
            self.refused.append(name)
            return
        self.admitted.append(name)
        self.at_work.append(name)
        self.most_at_work = max(self.most_at_work, len(self.at_work))
        try:
            await self._may_finish[name].wait()
        finally:
            self.at_work.remove(name)
            permit.release()

    async def finish_all(self) -> None:
        """Let all finish; then every permit must be free, and nobody wait."""
        for event in self._may_finish.values():
            event.set()
        async with asyncio.timeout(10):
            for task in self.tasks.values():
                with suppress(asyncio.CancelledError):
                    await task
        assert (self.admission.in_flight, self.admission.waiting) == (0, 0)
        assert self.most_at_work <= self.admission.limit + self.admission.backlog


async def settle() -> None:
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(
    limit: int, *, backlog: int = 0, queue_length: int = 10, queue_wait: float = LONG
) -> Callable[[Callable[[Clients], Coroutine[Any, Any, None]]], None]:
    """Return what runs a scene with so many permits, and then lets every request finish."""

    async def play(scene: Callable[[Clients], Coroutine[Any, Any, None]]) -> None:
        errors: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        admission = Admission(limit, backlog=backlog, name="threads", queue_length=queue_length, queue_wait=queue_wait)
        clients = Clients(admission)
        async with expiring(admission.expire):
            await scene(clients)
            await clients.finish_all()
        assert errors == []

    return lambda scene: asyncio.run(play(scene))


def test_no_more_than_the_limit_are_inside_and_the_others_come_in_their_order() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(*range(8))
        assert clients.at_work == [0, 1, 2]
        assert (clients.admission.in_flight, clients.admission.waiting) == (3, 5)
        await clients.finish(1)
        assert clients.at_work == [0, 2, 3]
        await clients.finish(0, 2, 3)
        assert clients.at_work == [4, 5, 6]
        await clients.finish(4, 5, 6)
        assert clients.admitted == list(range(8))

    run(limit=3)(scene)
    run(limit=2, backlog=1)(scene)


def test_reads_overtake_the_writes_that_find_their_share_taken() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(*range(5), is_write=True)
        assert clients.at_work == [0, 1, 2], "one permit in four is for reads only"
        await clients.arrive(5, 6)
        assert clients.at_work == [0, 1, 2, 5]
        await clients.arrive(7, is_write=True)
        await clients.arrive(8)
        await clients.finish(5)
        await clients.finish(6)
        assert clients.at_work == [0, 1, 2, 8], "reads come in their order"
        await clients.finish(1, 0, 2)
        assert clients.at_work == [8, 3, 4, 7], "and so do writes"

    run(limit=4)(scene)


def test_writes_that_were_overtaken_fill_the_queue_for_no_read() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(*range(5), is_write=True)
        await clients.arrive(5, 6, 7)
        assert (clients.at_work, clients.refused) == ([0, 1, 2, 5], [4, 7])
        await clients.finish(5)
        assert clients.at_work == [0, 1, 2, 6]

    run(limit=4, queue_length=1)(scene)


def test_an_overtaken_write_that_waits_too_long_is_refused() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(*range(4), is_write=True)
        async with asyncio.timeout(10):
            await clients.tasks[3]
        assert (clients.at_work, clients.refused) == ([0, 1, 2], [3])

    run(limit=4, queue_wait=0.05)(scene)


def test_who_comes_when_the_queue_is_full_is_refused_at_once() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(*range(6))
        assert (clients.at_work, clients.refused, clients.admission.waiting) == ([0, 1], [5], 3)
        await clients.finish(0)
        await clients.arrive(6)  # there is room in the queue again
        assert (clients.refused, clients.admission.waiting) == ([5], 3)

    run(limit=2, queue_length=3)(scene)


def test_a_queue_of_no_length_refuses_whoever_finds_no_place() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1)
        assert (clients.at_work, clients.refused) == ([0], [1])
        await clients.finish(0)
        await clients.arrive(2)
        assert clients.at_work == [2]

    run(limit=1, queue_length=0)(scene)


def test_who_waits_too_long_is_refused_and_keeps_nobody_back() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1, 2)
        async with asyncio.timeout(10):
            await asyncio.gather(clients.tasks[1], clients.tasks[2])
        assert clients.refused == [1, 2]
        await clients.arrive(3)
        await clients.finish(0)
        assert clients.at_work == [3]

    run(limit=1, queue_wait=0.05)(scene)


def test_who_is_cancelled_in_the_queue_leaves_it() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1, 2)
        clients.tasks[1].cancel()
        await settle()
        assert clients.admission.waiting == 1
        await clients.finish(0)
        assert clients.at_work == [2]

    run(limit=1)(scene)


def test_who_is_cancelled_inside_gives_the_place_to_the_next() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1)
        clients.tasks[0].cancel()
        await settle()
        assert clients.at_work == [1]

    run(limit=1)(scene)


def test_a_place_given_at_the_moment_of_the_cancellation_goes_to_the_next() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1, 2)
        clients.tasks[0].cancel()  # gives its place to 1, who is cancelled before it runs
        await asyncio.sleep(0)
        clients.tasks[1].cancel()
        await settle()
        assert clients.at_work == [2]

    run(limit=1)(scene)


def test_who_is_cancelled_just_before_a_place_is_free_is_passed_over() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1, 2)
        clients.tasks[0].cancel()
        clients.tasks[1].cancel()  # still in the queue when 0, who runs first, gives its place back
        await settle()
        assert clients.at_work == [2]

    run(limit=1)(scene)


def test_who_is_cancelled_just_as_its_wait_is_over_gives_back_no_place_that_it_never_had() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0, 1)
        while clients.admission.waiting:  # noqa: ASYNC110 - until its time is over, before its task runs again
            await asyncio.sleep(0)
        clients.tasks[1].cancel()
        await settle()
        assert (clients.at_work, clients.admission.free) == ([0], 0)

    run(limit=1, queue_wait=0.05)(scene)


@pytest.mark.parametrize("limit", [1, 4])
def test_no_place_is_lost_or_made_by_a_thousand_requests_of_which_many_are_cancelled(limit: int) -> None:
    async def scene(clients: Clients) -> None:
        for name in range(1000):
            await clients.arrive(name)
            if name % 3 == 0:
                clients.tasks[name // 2].cancel()
            if name % 5 == 0:
                clients.tasks[name].cancel()
            if name % 2 == 0:
                await clients.finish(name // 3)
            assert clients.admission.free >= 0

    run(limit, queue_wait=0.002)(scene)


def test_requests_of_low_priority_come_last_and_make_room_for_others() -> None:
    async def scene(clients: Clients) -> None:
        await clients.arrive(0)
        await clients.arrive(1, 2, low_priority=True)
        assert clients.admission.full
        await clients.arrive(3, low_priority=True)
        assert clients.refused == [3]
        await clients.arrive(4)
        assert clients.refused == [3, 2], "the newest of low priority makes room"
        await clients.finish(0)
        assert clients.at_work == [4]
        await clients.finish(4)
        assert clients.at_work == [1]

    run(limit=1, queue_length=2)(scene)


def admission(limit: int = 1, *, queue_length: int = 10) -> Admission:
    return Admission(limit, backlog=0, name="threads", queue_length=queue_length, queue_wait=LONG)


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"admission_{name}_total", {"queue": "threads", **labels}) or 0.0


def test_a_permit_is_released_by_its_block_and_only_once() -> None:
    queue = admission()
    permit = queue.try_acquire()
    assert permit
    with permit as held:
        assert held is permit
        assert (queue.in_flight, queue.try_acquire()) == (1, None)
    assert (queue.in_flight, queue.released) == (0, 1)
    permit.release()
    Permit(None).release()
    assert (queue.free, queue.released) == (1, 1)


def test_it_is_full_when_no_permit_is_free_and_nobody_more_may_wait() -> None:
    async def scene() -> None:
        queue = admission(queue_length=1)
        assert not queue.full
        queue.try_acquire()
        assert not queue.full
        queue.enqueue(time.monotonic() + LONG)
        assert queue.full

    asyncio.run(scene())


def test_whoever_comes_too_late_is_refused_and_counted() -> None:
    async def scene() -> None:
        before = counted("refused", reason="late")
        with pytest.raises(Overloaded, match="late"):
            admission().enqueue(time.monotonic())
        assert counted("refused", reason="late") == before + 1

    asyncio.run(scene())


@pytest.mark.parametrize("low_priority", [False, True])
def test_whoever_leaves_the_queue_gets_no_permit_and_is_counted(*, low_priority: bool) -> None:
    async def scene() -> None:
        queue, before = admission(), counted("abandoned")
        permit = queue.try_acquire()
        assert permit
        turn = queue.enqueue(time.monotonic() + LONG, low_priority=low_priority)
        queue.cancel(turn)
        assert (turn.cancelled(), queue.waiting, counted("abandoned")) == (True, 0, before + 1)
        permit.release()
        assert queue.free == 1

    asyncio.run(scene())


def test_whoever_leaves_after_the_refusal_gives_back_no_permit() -> None:
    async def scene() -> None:
        queue = admission()
        queue.try_acquire()
        turn = queue.enqueue(time.monotonic() + LONG)
        queue.expire(time.monotonic() + 2 * LONG)
        queue.cancel(turn)
        assert (queue.free, queue.released) == (0, 0)

    asyncio.run(scene())


def test_a_request_has_no_low_priority_unless_it_says_so() -> None:
    async def scene() -> None:
        queue = admission(queue_length=2)
        permit = queue.try_acquire()
        assert permit
        low = queue.enqueue(time.monotonic() + LONG, low_priority=True)
        turn = queue.enqueue(time.monotonic() + LONG)
        waiting = asyncio.create_task(queue.acquire(time.monotonic() + LONG))
        await settle()
        assert isinstance(low.exception(), Overloaded), "a request with priority takes its place"
        permit.release()
        turn.result().release()
        (await waiting).release()

    asyncio.run(scene())


def test_a_wait_ends_soon_after_its_time_and_nothing_is_looked_for_after_the_block() -> None:
    async def scene() -> None:
        calls: list[float] = []
        began = time.monotonic()
        async with asyncio.timeout(10), expiring(calls.append):
            while not calls:  # noqa: ASYNC110 - it is what is measured
                await asyncio.sleep(0.01)
        assert calls[0] - began < 0.5
        calls.clear()
        await asyncio.sleep(3 * TICK)
        assert calls == []

    asyncio.run(scene())
