"""Sign-ups that wait for a core to hash on."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service
from tests.support.sessions import locked, waiting
from tests.support.users import new_user

pytestmark = pytest.mark.real_hashes

# On a busy machine a sign-up waits longer for a core than a client would; here nobody may be turned away.
PATIENT = {"QUEUE_WAIT": "20", "REQUEST_DEADLINE": "30", "GRACEFUL_SHUTDOWN_TIMEOUT": "40", "WORKER_THREADS": "4"}


def test_reads_overtake_the_sign_ups_that_wait_for_a_core(database: TestDatabase) -> None:
    """With hashing in every thread, a read would wait until the sign-ups before it are through."""
    with (
        Service({**database.environment, **PATIENT}) as service,
        httpx.Client(base_url=service.url, timeout=60) as client,
        ThreadPoolExecutor(64) as executor,
    ):
        waiting = [executor.submit(client.post, "/users", json=new_user()) for _ in range(64)]
        until(lambda: any(each.done() for each in waiting), "the first sign-up is answered")
        reads = [client.get("/users?limit=1").status_code for _ in range(20)]
        left = sum(not each.done() for each in waiting)
    print(f"{left} of 64 sign-ups were still waiting when 20 reads had been answered")
    assert reads == [200] * 20
    assert left > 0
    assert [each.result().status_code for each in waiting] == [201] * 64


def test_sign_ups_that_wait_for_the_database_keep_no_core_from_the_next(
    database: TestDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = os.sched_getaffinity(0)
    monkeypatch.setattr(Service, "fork_server", None)  # which has all cores
    os.sched_setaffinity(0, {min(given)})  # of one core, one sign-up hashes at a time
    try:
        service = Service({**database.environment, **PATIENT})
        with service, httpx.Client(base_url=service.url, timeout=60) as client:
            create = partial(client.post, "/users")
            with ThreadPoolExecutor(3) as executor:
                with locked(database):
                    answers = [executor.submit(create, json=new_user()) for _ in range(3)]
                    # One of the four threads takes no write.
                    until(lambda: waiting(database) == 3, "all three have hashed, and wait for the table")
                assert [answer.result().status_code for answer in answers] == [201] * 3
    finally:
        os.sched_setaffinity(0, given)
