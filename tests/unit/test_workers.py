"""The worker threads, on a real event loop."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from service.web.admission import Overloaded, expiring
from service.web.workers import Call, Workers
from tests.support.polling import until

SIZE = 2
LONG = 60.0  # seconds: longer than a test
COLOUR: ContextVar[str] = ContextVar("COLOUR")


class Hold:
    """A call that takes its thread until it is let go."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()

    def __call__(self) -> None:
        self.begun.release()
        assert self.go.wait(LONG)


def later(wait: float = LONG) -> float:
    """Return the time by which a call has to begin."""
    return time.monotonic() + wait


def play(scene: Callable[[Workers], Coroutine[Any, Any, None]]) -> None:
    """Run a scene with `SIZE` threads."""

    errors: list[dict[str, Any]] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
        workers = Workers(SIZE)
        async with asyncio.timeout(LONG), workers.running(), expiring(workers.expire):
            await scene(workers)
            assert workers.idle == SIZE

    asyncio.run(run())
    assert errors == []
    until(lambda: not any(thread.name.startswith("AnyIO") for thread in threading.enumerate()), "its threads end")


async def all_taken(workers: Workers) -> tuple[Hold, asyncio.Future[list[None]]]:
    """Return what holds every thread, and what ends when it has let go."""
    hold = Hold()
    held = asyncio.gather(*(workers.run(hold, {}, start_by=later()) for _ in range(SIZE)))
    for _ in range(SIZE):
        assert await asyncio.to_thread(hold.begun.acquire, timeout=LONG)
    return hold, held


def test_a_call_is_carried_out_on_a_thread_in_the_context_of_its_request() -> None:
    def answer(number: int) -> tuple[int, str, bool]:
        return number, COLOUR.get(), threading.current_thread() is threading.main_thread()

    async def scene(workers: Workers) -> None:
        COLOUR.set("blue")
        assert await workers.run(answer, {"number": 7}, start_by=later()) == (7, "blue", False)

    play(scene)


@pytest.mark.parametrize(("raised", "seen"), [(ValueError, ValueError), (StopIteration, RuntimeError)])
def test_what_a_call_raises_is_raised_where_it_is_awaited(raised: type[Exception], seen: type[Exception]) -> None:
    def fail() -> None:
        raise raised

    async def scene(workers: Workers) -> None:
        for _ in range(SIZE + 1):  # and its thread takes the next
            with pytest.raises(seen):
                await workers.run(fail, {}, start_by=later())

    play(scene)


def test_calls_that_no_thread_takes_in_time_are_refused_and_never_carried_out() -> None:
    done: list[int] = []

    def note(number: int) -> None:
        done.append(number)

    async def scene(workers: Workers) -> None:
        hold, held = await all_taken(workers)
        calls = [workers.run(note, {"number": n}, start_by=later(0.2)) for n in range(5)]
        late = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in late] == [Overloaded] * 5
        hold.go.set()
        await held

    play(scene)
    assert done == []


def test_a_call_that_nobody_awaits_any_more_is_never_carried_out() -> None:
    done: list[bool] = []

    def note() -> None:
        done.append(True)

    async def scene(workers: Workers) -> None:
        hold, held = await all_taken(workers)
        forgotten = asyncio.create_task(workers.run(note, {}, start_by=later()))
        await asyncio.sleep(0)
        forgotten.cancel()
        await asyncio.wait([forgotten])
        hold.go.set()
        await held

    play(scene)
    assert done == []


def test_writes_leave_a_thread_to_reads_and_come_in_their_order() -> None:
    done: list[int] = []

    def write(number: int) -> None:
        done.append(number)

    async def scene(workers: Workers) -> None:
        hold = Hold()
        held = asyncio.create_task(workers.run(hold, {}, start_by=later(), is_write=True))
        assert await asyncio.to_thread(hold.begun.acquire, timeout=LONG)
        writes = [workers.run(write, {"number": n}, start_by=later(), is_write=True) for n in range(5)]
        late = workers.run(write, {"number": 9}, start_by=later(0.2), is_write=True)
        waiting = asyncio.gather(*writes, late, return_exceptions=True)
        assert await workers.run(lambda: 7, {}, start_by=later()) == 7
        await asyncio.sleep(0.3)
        assert (done, await workers.run(lambda: 8, {}, start_by=later())) == ([], 8)
        hold.go.set()
        await held
        assert [type(each) for each in await waiting] == [type(None)] * 5 + [Overloaded]

    play(scene)
    assert done == [0, 1, 2, 3, 4]


class Removed(deque[Call]):
    """Writes of which the first is removed when a thread wants it, while another thread adds one and finds no share."""

    def __init__(self, workers: Workers, later: Call) -> None:
        super().__init__()
        self._workers = workers
        self._later: Call | None = later

    def popleft(self) -> Call:
        if self._later:
            self.clear()
            self.append(self._later)
            self._later = None
            self._workers._write()  # noqa: SLF001 - the other thread's
            raise IndexError
        return super().popleft()


def test_a_write_that_comes_while_another_is_removed_is_carried_out() -> None:
    async def scene(workers: Workers) -> None:
        later_call = Call(lambda: 2, {}, later(), is_write=True)
        workers._overtaken = Removed(workers, later_call)  # noqa: SLF001 - two threads at one moment
        removed = asyncio.create_task(workers.run(lambda: 1, {}, start_by=later(), is_write=True))
        assert await asyncio.wait_for(later_call.result, 5) == 2
        removed.cancel()
        await asyncio.gather(removed, return_exceptions=True)

    play(scene)


@pytest.mark.parametrize("fails", [False, True])
def test_a_call_that_is_given_up_while_it_runs_ends_without_an_error(*, fails: bool) -> None:
    hold = Hold()

    def call() -> None:
        hold()
        if fails:
            raise ValueError

    async def scene(workers: Workers) -> None:
        given_up = asyncio.create_task(workers.run(call, {}, start_by=later()))
        assert await asyncio.to_thread(hold.begun.acquire, timeout=LONG)
        given_up.cancel()
        await asyncio.wait([given_up])
        hold.go.set()
        assert await workers.run(lambda: 7, {}, start_by=later()) == 7
        await asyncio.sleep(0.05)  # until the thread has reported its end

    play(scene)


def test_a_thread_that_the_system_refuses_is_an_error_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def refuse_the_second(thread: threading.Thread) -> None:
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    async def run() -> None:
        async with Workers(SIZE).running():
            pass

    monkeypatch.setattr(threading.Thread, "start", refuse_the_second)
    with pytest.raises(RuntimeError, match="new thread"):
        asyncio.run(run())
    until(lambda: not started[0].is_alive(), "the first thread ends")
