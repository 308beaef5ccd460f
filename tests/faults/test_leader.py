"""Two primaries: the standby was promoted while the former primary lives on, and takes writes that will be lost."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import pytest

from tests.faults.conftest import SHORT
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service
from tests.support.proxy import Proxy
from tests.support.replication import promote
from tests.support.sessions import sessions


@pytest.fixture
def service(pair: tuple[Cluster, Cluster], database: TestDatabase) -> Iterator[Service]:
    """A service that knows of both, the primary first."""
    with Service({**SHORT, "DATABASE_URL": database.url(*pair)}) as service:
        yield service


@pytest.mark.parametrize("fault", ["lives on", "is frozen"])
def test_writes_go_to_the_newest_timeline_whatever_the_former_primary_does(
    service: Service,
    pair: tuple[Cluster, Cluster],
    database: TestDatabase,
    record_figure: Callable[[str], None],
    fault: str,
) -> None:
    primary, standby = pair
    heir = TestDatabase(standby, database.name)
    created: dict[int, tuple[float, float]] = {}  # when the request began and ended, by the id of the user
    ids = count(1)
    stopped = False

    def create() -> None:
        while not stopped:
            user_id = next(ids)
            email = f"{user_id}@example.com"
            user = {"id": user_id, "fname": "Ada", "lname": "Led", "email": email, "password": "p" * 8}
            began = time.monotonic()
            if service.client.post("/users", json=user).status_code == 201:
                created[user_id] = began, time.monotonic()

    with ThreadPoolExecutor(4) as clients:
        results = [clients.submit(create) for _ in range(4)]
        try:
            until(lambda: len(created) > 10, "users are created")
            frozen = primary.freeze() if fault == "is frozen" else []
            promote(standby)
            promoted = time.monotonic()
            later = promoted + 0.5
            until(lambda: len([began for began, _ in list(created.values()) if began > later]) > 10, "writes go on")
        finally:
            stopped = True
    primary.thaw(frozen)
    for result in results:
        result.result()
    with heir.connect() as conn:
        rows = {row[0] for row in conn.execute('SELECT id FROM public."user"')}
    lost = [began - promoted for user_id, (began, _) in created.items() if user_id not in rows and began > promoted]
    first = min(ended for user_id, (_, ended) in created.items() if user_id in rows and ended > promoted) - promoted
    record_figure(
        f"the former primary {fault}: first 201 of the new one {first:.2f} s after the promotion;"
        f" the last write to the former one began after {max(lost, default=0):.2f} s, and {len(lost)} are lost"
    )
    assert max(lost, default=0) < 0.5
    assert first < 1
    until(lambda: not sessions(database), "no connection to the former primary is left")


def test_two_ways_to_one_primary_are_both_used(database: TestDatabase) -> None:
    """As through two HAProxys: both answer with the same timeline."""
    watches = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'users-service-watch'"
    with Proxy(database.cluster.port) as first, Proxy(database.cluster.port) as second:
        url = database.url().replace("@/", f"@127.0.0.1:{first.port},127.0.0.1:{second.port}/")
        with Service({**SHORT, "DATABASE_URL": url}) as service, database.as_superuser() as conn:
            until(lambda: conn.execute(watches).fetchone() == (2,), "both ways are watched")
            first.swallow = True
            first.cut()
            until(lambda: service.client.get("/users").status_code == 200, "reads go on", within=4)
            assert {service.client.get("/users").status_code for _ in range(20)} == {200}
