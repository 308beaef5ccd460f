"""Each worker keeps to a core of its own."""

import os
from pathlib import Path

from service.users.passwords import NICE
from tests.support.checkout import workers
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service
from tests.support.users import new_user

CORES = os.sched_getaffinity(0)


def pinned(pid: int) -> list[set[int]]:
    """Return the cores that each thread of a process may use."""
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def test_all_threads_of_a_worker_are_pinned_to_one_core(service: Service) -> None:
    assert service.client.get("/users").status_code == 200
    found = pinned(service.process.pid)
    assert all(cores == found[0] for cores in found), found
    assert len(found[0]) == 1


def test_hashing_uses_every_core_and_stands_back_for_all_else(database: TestDatabase) -> None:
    with Service(database.environment) as service:
        assert service.client.post("/users", json=new_user()).status_code == 201
        usual = os.getpriority(os.PRIO_PROCESS, service.process.pid)
        threads = [int(thread.name) for thread in Path(f"/proc/{service.process.pid}/task").iterdir()]
        hashing = [thread for thread in threads if os.getpriority(os.PRIO_PROCESS, thread) == min(19, usual + NICE)]
        assert CORES in [os.sched_getaffinity(thread) for thread in hashing]


def test_two_workers_share_a_core_only_if_there_are_more_workers_than_cores(database: TestDatabase) -> None:
    count = len(CORES) + 1
    settings = database.environment | {"WORKERS": str(count), "WORKER_THREADS": "1"}
    with Service(settings) as service:
        until(lambda: service.log.count("this worker keeps to core") == count, "each worker has a core")
        used = {core for pid in workers(service) for core in pinned(pid)[0]}
        assert service.log.count("which it shares") >= 1
    if service.log.count("which it shares") == 1:  # or another test has a service that has a core
        assert used == CORES


def test_it_can_be_left_to_the_scheduler(database: TestDatabase) -> None:
    with Service(database.environment | {"WORKER_AFFINITY": "false"}) as service:
        assert all(cores == CORES for cores in pinned(service.process.pid))
        assert "keeps to core" not in service.log
