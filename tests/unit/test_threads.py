"""Work in the background goes on, whatever happens."""

import logging
import threading

import pytest

from service.database import threads
from service.database.threads import start_thread
from tests.house import modules

# These end with what they do, or log an exception and go on by themselves.
OTHERS = {"machine", "database.sessions", "extras.log_writer", "extras.affinity"}
OTHERS |= {"database.threads", "extras.admin.publisher"}


def test_work_that_fails_is_logged_and_begun_again(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "RESTART_DELAY", 0)
    calls: list[threading.Thread] = []

    def work() -> None:
        calls.append(threading.current_thread())
        if len(calls) < 3:
            raise RuntimeError("can't start new thread")

    with caplog.at_level(logging.ERROR):
        thread = start_thread("work", work)
        thread.join(5)
    assert not thread.is_alive()
    assert calls == [thread] * 3
    assert [record.getMessage() for record in caplog.records] == ["the thread work failed and is started again"] * 2
    assert all(record.exc_info for record in caplog.records)


def test_what_runs_as_long_as_the_process_is_started_that_way() -> None:
    started = {name for name, file in modules().items() if "threading.Thread(" in file.read_text()}
    assert started == {f"service.{name}" for name in OTHERS}
