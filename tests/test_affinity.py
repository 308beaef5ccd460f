"""Each worker keeps to a core of its own."""

import os
import re
from pathlib import Path

from service.users.passwords import NICE
from tests.checkout import workers
from tests.polling import until
from tests.postgres import TestDatabase
from tests.process import Service
from tests.users import new_user

CORES = os.sched_getaffinity(0)


def kept(pid: int) -> list[set[int]]:
    """Return the cores that each thread of a process may use."""
    return [os.sched_getaffinity(int(thread.name)) for thread in Path(f"/proc/{pid}/task").iterdir()]


def told(service: Service) -> list[str]:
    return re.findall(r"this worker keeps to core \d+|every core has its worker already", service.log)


def test_a_worker_keeps_all_its_threads_to_one_core_or_says_that_none_is_free(service: Service) -> None:
    assert service.client.get("/users").status_code == 200
    found = kept(service.process.pid)
    assert all(cores == found[0] for cores in found), found
    core = re.search(r"this worker keeps to core (\d+)", service.log)
    assert found[0] == ({int(core[1])} if core else CORES)


def test_hashing_uses_every_core_and_stands_back_for_all_else(database: TestDatabase) -> None:
    with Service(database.environment) as service:
        assert service.client.post("/users", json=new_user()).status_code == 201
        usual = os.getpriority(os.PRIO_PROCESS, service.process.pid)
        threads = [int(thread.name) for thread in Path(f"/proc/{service.process.pid}/task").iterdir()]
        hashing = [thread for thread in threads if os.getpriority(os.PRIO_PROCESS, thread) == min(19, usual + NICE)]
        assert len(hashing) == 1
        assert os.sched_getaffinity(hashing[0]) == CORES


def test_no_two_workers_keep_to_the_same_core(database: TestDatabase) -> None:
    count = len(CORES) + 1
    settings = database.environment | {"WORKERS": str(count), "WORKER_THREADS": "1"}
    with Service(settings) as service:
        until(lambda: len(told(service)) >= count, "each has said what it does")
        alone = [cores for pid in workers(service) if len(cores := kept(pid)[0]) == 1]
    assert len({core for cores in alone for core in cores}) == len(alone)
    assert any("every core" in words for words in told(service))


def test_it_can_be_left_to_the_scheduler(database: TestDatabase) -> None:
    with Service(database.environment | {"WORKER_AFFINITY": "false"}) as service:
        assert all(cores == CORES for cores in kept(service.process.pid))
        assert not told(service)
