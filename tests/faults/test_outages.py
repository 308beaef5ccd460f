import signal
import time
from collections.abc import Callable

import pytest

from tests.support.load import Load
from tests.support.outage import survive
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["fast", "immediate"])
def test_a_restart_under_load_loses_nothing_and_is_over_at_once(
    how: signal.Signals, service: Service, victim: Cluster, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        victim.stop(how)
        victim.start()
        back = time.monotonic()
        until(lambda: load.statuses(back + 1, "GET")[200] > 50, "reads are answered again, also a second later")
    load.reconcile(database)
    first = load.first(200, back)
    record_figure(f"restart ({how.name}): first 200 after {first:.3f} s; {dict(load.statuses())}")
    assert not load.unexpected({200, 201, 503})
    assert set(load.statuses(back + 1, "GET")) == {200}
    assert first < 1


def test_an_outage_ends_within_a_second_of_the_return(
    service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    survive(5, service, database, record_figure)


def test_a_restart_that_nobody_was_waiting_for_is_noticed_by_nobody(service: Service, victim: Cluster) -> None:
    victim.stop()
    victim.start()
    statuses = [service.client.get("/users").status_code for _ in range(100)]
    assert set(statuses) == {200}


@pytest.mark.parametrize("killed", ["one", "all"])
def test_terminated_backends_cost_no_read(
    killed: str, service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load, database.as_superuser() as conn:
        for _ in range(10):
            conn.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'users-service'"
                + (" LIMIT 1" if killed == "one" else "")
            )
            cut = time.monotonic()
            load.go_on(cut)  # a read that was cut once is through before it may be cut again
    load.reconcile(database)
    record_figure(
        f"backends terminated, {killed} at a time: {dict(load.statuses())}; reads {dict(load.statuses(method='GET'))}"
    )
    assert load.statuses(method="GET")[503] == 0
    assert not load.unexpected({200, 201, 503})


def test_a_frozen_server_costs_each_request_its_deadline_and_no_more(
    service: Service, victim: Cluster, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        frozen = victim.freeze()
        began = time.monotonic()
        until(lambda: load.statuses(began)[503] > 8, "connections that hang are given up, others cannot be had")
        assert service.client.get("/livez").status_code == 200
        victim.thaw(frozen)
        back = time.monotonic()
        until(lambda: load.statuses(back + 2, "GET")[200] > 50, "reads are answered again")
    load.reconcile(database)
    longest = max(answer.seconds for answer in load.answers)
    record_figure(f"frozen server: longest answer {longest:.2f} s with a deadline of 2 s; {dict(load.statuses())}")
    assert longest < 2 + 1 + 0.5, "the deadline, the queue before it, and half a second"
    assert set(load.statuses(back + 2, "GET")) == {200}
