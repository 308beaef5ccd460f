"""The leader is lost in every way, under load: what was acknowledged is there, and what was refused is not."""

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from tests.ha.load import Kind, Load
from tests.ha.report import RESULTS, Result, longest_gap
from tests.ha.rig import Rig
from tests.support.polling import until

PATIENCE = 10.0  # seconds after the promotion for writes to resume, before the fault is mended


@dataclass
class Fault:
    """What happens to the cluster, and how it is mended."""

    name: str
    make: Callable[[Rig, str], None]  # of the leader, by its name
    mend: Callable[[Rig, str], None]
    lasts: float = 0.0  # seconds; 0: until a standby is promoted
    failsafe: bool = True  # Patroni's failsafe_mode
    promotes: bool = True


FAULTS = [
    Fault("leader killed", Rig.kill, Rig.start),
    Fault("leader frozen", Rig.freeze, Rig.thaw),
    Fault("leader isolated", Rig.isolate, Rig.rejoin),
    Fault("Patroni killed, its PostgreSQL lives on", Rig.kill_patroni, Rig.start),
    Fault("switchover", Rig.switch_over, lambda _, __: None),
    Fault("etcd lost for 18 s", Rig.stop_etcd, Rig.start_etcd, lasts=18, failsafe=False),
    Fault("etcd lost for 18 s, failsafe_mode", Rig.stop_etcd, Rig.start_etcd, lasts=18, promotes=False),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name.replace(" ", "_").replace(",", ""))
@pytest.mark.usefixtures("round_number")
def test_nothing_acknowledged_is_lost_and_nothing_refused_is_done(
    cluster: Rig, fault: Fault, request: pytest.FixtureRequest
) -> None:
    loads = {form: Load([each.url for each in services], 1000 * number)
             for number, (form, services) in enumerate(cluster.services.items(), 1)}  # fmt: skip
    with cluster.connect() as conn:
        conn.execute('TRUNCATE public."user", public.idempotency_key')
        for load in loads.values():
            load.seed(conn)
    cluster.set_failsafe(to=fault.failsafe)
    leader = cluster.leader

    with cluster.explain(), ExitStack() as stack:
        for load in loads.values():
            stack.enter_context(load)
        until(lambda: _have_succeeded(loads, 0.0, 50), "the load runs")
        began = time.monotonic()
        fault.make(cluster, leader)
        if fault.lasts:
            time.sleep(fault.lasts)
            fault.mend(cluster, leader)
        promoted = until(lambda: cluster.roles.promoted(began), "a promotion", within=60) if fault.promotes else None
        if promoted and not fault.lasts:
            while not _have_succeeded(loads, promoted) and time.monotonic() < promoted + PATIENCE:
                time.sleep(0.1)
            fault.mend(cluster, leader)
        until(cluster.is_healthy, "the cluster is whole again", within=90)
        mended = time.monotonic()
        until(lambda: _have_succeeded(loads, mended, 50), "all goes on")

    with cluster.connect() as conn:
        found = {form: load.reconcile(conn) for form, load in loads.items()}
    unexpected = {form: load.unexpected() for form, load in loads.items()}
    for form, load in loads.items():
        first = load.successes("writes", promoted)[0] - promoted if promoted else None
        request.config.stash[RESULTS].append(Result(
            fault.name, form, longest_gap(load, "writes"), longest_gap(load, "reads"), first,
            load.failures("writes"), load.failures("reads"), len(found[form].lost), len(found[form].done),
            sum(answer.status == 500 for answer in load.answers),
        ))  # fmt: skip
    assert not any(each.lost for each in found.values()), found
    assert not any(each.done for each in found.values()), found
    assert not any(unexpected.values()), unexpected


def _have_succeeded(loads: Mapping[str, Load], since: float, count: int = 1) -> bool:
    """Return whether in every form as many reads and writes have succeeded since then."""
    kinds: tuple[Kind, ...] = ("reads", "writes")
    return all(len(load.successes(kind, since)) >= count for load in loads.values() for kind in kinds)
