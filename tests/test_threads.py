"""The worker threads, on a real event loop."""

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from service.http.threads import START_BY, Overloaded, Threads
from tests.polling import until

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


def play(scene: Callable[[Threads], Coroutine[Any, Any, None]], *, wait: float = LONG) -> None:
    """Run a scene with `SIZE` threads on which every call has to begin within `wait` seconds."""

    async def run() -> None:
        threads = Threads(SIZE)
        START_BY.set(time.monotonic() + wait)
        async with asyncio.timeout(LONG), threads.running():
            await scene(threads)
            assert threads.idle == SIZE

    asyncio.run(run())
    until(lambda: not any(thread.name.startswith("AnyIO") for thread in threading.enumerate()), "its threads end")


async def all_taken(threads: Threads) -> tuple[Hold, asyncio.Future[list[None]]]:
    """Return what holds every thread, and what ends when it has let go."""
    hold = Hold()
    held = asyncio.gather(*(threads.run(hold, {}) for _ in range(SIZE)))
    for _ in range(SIZE):
        assert await asyncio.to_thread(hold.begun.acquire, timeout=LONG)
    return hold, held


def test_a_call_is_carried_out_on_a_thread_in_the_context_of_its_request() -> None:
    def answer(number: int) -> tuple[int, str, bool]:
        return number, COLOUR.get(), threading.current_thread() is threading.main_thread()

    async def scene(threads: Threads) -> None:
        COLOUR.set("blue")
        assert await threads.run(answer, {"number": 7}) == (7, "blue", False)

    play(scene)


@pytest.mark.parametrize(("raised", "seen"), [(ValueError, ValueError), (StopIteration, RuntimeError)])
def test_what_a_call_raises_is_raised_where_it_is_awaited(raised: type[Exception], seen: type[Exception]) -> None:
    def fail() -> None:
        raise raised

    async def scene(threads: Threads) -> None:
        for _ in range(SIZE + 1):  # and its thread takes the next
            with pytest.raises(seen):
                await threads.run(fail, {})

    play(scene)


def test_calls_that_no_thread_takes_in_time_are_refused_and_never_carried_out() -> None:
    done: list[int] = []

    def note(number: int) -> None:
        done.append(number)

    async def scene(threads: Threads) -> None:
        hold, held = await all_taken(threads)
        late = await asyncio.gather(*(threads.run(note, {"number": n}) for n in range(5)), return_exceptions=True)
        assert [type(each) for each in late] == [Overloaded] * 5
        hold.go.set()
        await held

    play(scene, wait=0.2)
    assert done == []


def test_a_call_that_nobody_awaits_any_more_is_never_carried_out() -> None:
    done: list[bool] = []

    def note() -> None:
        done.append(True)

    async def scene(threads: Threads) -> None:
        hold, held = await all_taken(threads)
        forgotten = asyncio.create_task(threads.run(note, {}))
        await asyncio.sleep(0)
        forgotten.cancel()
        await asyncio.wait([forgotten])
        hold.go.set()
        await held

    play(scene)
    assert done == []


def test_an_endpoint_keeps_its_looks_and_must_be_a_plain_def() -> None:
    def read(user_id: int) -> int:
        """Say so."""
        return user_id

    async def wrong() -> None:
        """Would hold the event loop while it waits for the database."""

    threads = Threads(SIZE)
    endpoint = threads.endpoint(read)
    assert (endpoint.__name__, endpoint.__doc__) == ("read", "Say so.")
    with pytest.raises(TypeError, match="wrong runs on a thread: write it with a plain def"):
        threads.endpoint(wrong)
