import time
from collections.abc import Callable, Iterator

import pytest

from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service
from tests.support.proxy import Proxy


@pytest.fixture
def proxy(database: TestDatabase) -> Iterator[Proxy]:
    with Proxy(database.cluster.port) as proxy:
        yield proxy


@pytest.fixture
def service(database: TestDatabase, proxy: Proxy) -> Iterator[Service]:
    with Service({**database.environment, **SHORT, "DATABASE_PORT": str(proxy.port)}) as service:
        yield service


def summary(fault: str, load: Load) -> str:
    longest = max(answer.seconds for answer in load.answers)
    return f"{fault}: {dict(load.statuses())}; reads {dict(load.statuses(method='GET'))}; longest {longest:.2f} s"


@pytest.mark.parametrize("fault", ["reset", "truncate"])
def test_a_connection_that_breaks_in_mid_reply_is_replaced_and_reads_are_tried_again(
    fault: str, service: Service, proxy: Proxy, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        for _ in range(10):
            damaged = proxy.damaged
            setattr(proxy, fault, True)
            until(lambda damaged=damaged: proxy.damaged > damaged, "a reply is damaged")  # type: ignore[misc]
            setattr(proxy, fault, False)
            load.go_on(time.monotonic())
    load.reconcile(database)
    record_figure(summary(fault, load))
    assert not load.unexpected({200, 201, 409, 503})
    assert load.statuses(method="GET")[503] < 5, "a read fails only when its second connection breaks, too"


def test_a_black_hole_costs_each_request_its_deadline_and_no_more(
    service: Service, proxy: Proxy, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with Load(service.url) as load:
        proxy.swallow = True
        began = time.monotonic()
        until(lambda: load.statuses(began)[503] > 8, "connections that hang are given up, others cannot be had")
        assert service.client.get("/livez").status_code == 200
        proxy.swallow = False
        back = time.monotonic()
        until(lambda: load.statuses(back + 2, "GET")[200] > 50, "reads are answered again")
    load.reconcile(database)
    record_figure(summary("black hole", load))
    assert max(answer.seconds for answer in load.answers) < 2 + 1 + 0.5, "deadline, queue before it, half a second"
    assert set(load.statuses(back + 2, "GET")) == {200}


def test_latency_slows_requests_and_fails_none(
    service: Service, proxy: Proxy, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    proxy.latency = 0.05
    with Load(service.url) as load:
        until(lambda: load.statuses(method="GET")[200] > 200, "the load goes on")
    load.reconcile(database)
    record_figure(summary("50 ms of latency", load))
    assert not load.unexpected({200, 201})
