"""DATABASE_READ_URL: a primary and its streaming standby, which serves reads when the primary does not."""

import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from urllib.parse import quote

import httpx
import psycopg
import pytest

from service.database.sessions import connect_to_host
from tests.faults.conftest import SHORT
from tests.support.load import Load
from tests.support.polling import until
from tests.support.postgres import PASSWORD, Cluster, TestDatabase, free_port, installed
from tests.support.process import Service, run_command
from tests.support.relay import Relay
from tests.support.replication import promote, streaming_standby
from tests.support.sessions import locked, sessions

WATCHES = "FROM pg_stat_activity WHERE application_name = 'users-service-watch' AND datname = current_database()"
SLOW = {"LOCK_TIMEOUT": "1.2", "STATEMENT_TIMEOUT": "1.3"}  # longer than a server may be silent
USER = {"fname": "Ada", "lname": "Read", "email": "ada@example.com", "password": "p" * 8}


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Cluster, Cluster]]:
    """A primary, and a standby that streams from it. The last test leaves another primary."""
    with (
        Cluster(installed()["18"]) as primary,
        streaming_standby(primary, wal_retrieve_retry_interval="100ms") as standby,
    ):
        yield primary, standby


@pytest.fixture
def database(pair: tuple[Cluster, Cluster]) -> TestDatabase:
    return pair[0].create_database()


@pytest.fixture
def service(database: TestDatabase, pair: tuple[Cluster, Cluster]) -> Iterator[Service]:
    primary, standby = pair
    urls = {"DATABASE_URL": database.url(primary), "DATABASE_READ_URL": database.url(primary, standby)}
    with Service({**SHORT, **SLOW, **urls}) as service:
        until(lambda: sessions(TestDatabase(standby, database.name)), "the replica is connected")
        yield service


class Reads(Load):
    """Clients that only read, so that no write keeps them waiting."""

    def _run(self, number: int) -> None:  # noqa: ARG002 - of Load
        with httpx.Client(base_url=self.url, timeout=30) as client:
            while not self._stopped.is_set():
                self._send(client, "GET", "/users?limit=10")


def longest_gap(load: Load, since: float) -> float:
    """Return the longest time between two good reads after `since`, in seconds."""
    ended = sorted(
        each.ended for each in list(load.answers) if each.method == "GET" and each.status == 200 and each.ended > since
    )
    return max(later - earlier for earlier, later in zip([since, *ended], ended, strict=False))


@pytest.mark.parametrize("fault", ["killed", "frozen"])
def test_while_the_primary_is_gone_every_read_is_served_by_the_replica(
    service: Service, pair: tuple[Cluster, Cluster], record_figure: Callable[[str], None], fault: str
) -> None:
    primary = pair[0]
    with Load(service.url, clients=4) as load, Reads(service.url, clients=2) as reads:
        until(lambda: load.statuses()[201] > 2, "users are created")
        began = time.monotonic()
        frozen = primary.freeze() if fault == "frozen" else []
        if not frozen:
            primary.stop(signal.SIGQUIT)
        until(lambda: reads.statuses(began)[200] > 100, "reads go on")
        answer = service.client.get("/users")
        ready = service.client.get("/readyz").status_code
        write = service.client.post("/users", json=USER)
        if frozen:
            primary.thaw(frozen)
        else:
            primary.start()
        back = time.monotonic()
        until(lambda: load.statuses(back)[201] > 2, "users are created again")
        until(lambda: "read-from" not in service.client.get("/users").headers, "the primary serves reads again")
    gap = longest_gap(reads, began)
    record_figure(f"primary {fault}: the longest time without a read {gap:.2f} s; {dict(reads.statuses(began))}")
    assert set(reads.statuses()) == {200}
    assert set(load.statuses(0, "GET")) <= {200, 404}, "a replica may lack the newest users, and no read fails"
    assert gap < 1.5  # 0.5 to 0.8 s on a machine that does nothing else
    assert answer.headers["Read-From"] == "replica"
    assert ready == 200
    assert write.status_code in {503, 504}, "no write goes to a standby"
    assert "unhandled" not in service.log


@pytest.fixture
def spread(database: TestDatabase, pair: tuple[Cluster, Cluster]) -> Iterator[Service]:
    """A service whose reads go to the replica all the time."""
    primary, standby = pair
    urls = {"DATABASE_URL": database.url(primary), "DATABASE_READ_URL": database.url(standby), "READS": "replica"}
    with Service({**SHORT, **urls}) as service:
        until(lambda: from_replica(service.client.get("/users")), "reads go to the replica")
        yield service


def from_replica(answer: httpx.Response) -> bool:
    return "Read-From" in answer.headers


def test_a_read_that_brings_the_position_of_a_write_always_sees_it(
    spread: Service, pair: tuple[Cluster, Cluster], record_figure: Callable[[str], None]
) -> None:
    client, standby = spread.client, pair[1]
    path = client.post("/users", json=USER).headers["Location"]
    stale = at_replica = 0
    for number in range(50):
        written = client.patch(path, json={"lname": f"Changed {number}"})
        after = {"Read-After": written.headers["Read-After"]}
        stale += client.get(path).text != written.text
        read = client.get(path, headers=after)
        at_replica += from_replica(read)
        assert read.text == written.text
    until(lambda: from_replica(client.get(path, headers=after)), "the replica has replayed the write")
    newer = client.get(path, headers={"Read-After": f"0000FFFF-{after['Read-After'].partition('-')[2]}"})
    assert not from_replica(newer), "the replica follows an older timeline"

    with psycopg.connect(standby.conninfo(), autocommit=True) as conn:
        conn.execute("SELECT pg_wal_replay_pause()")
        written = client.patch(path, json={"lname": "Paused"})
        after = {"Read-After": written.headers["Read-After"]}
        without, brought = client.get(path), client.get(path, headers=after)
        page = client.get("/users", params={"order": "-id"}, headers=after)
        unknown = client.get(path, headers={"Read-After": "yesterday"})
        conn.execute("SELECT pg_wal_replay_resume()")
    paths = client.get("/openapi.json").json()["paths"]
    record_figure(
        f"READS=replica: {stale} of 50 reads right after a write stale, with Read-After 0, {at_replica} at the replica"
    )
    assert without.json()["lname"] != "Paused"
    assert from_replica(without)
    for read in (brought, unknown):
        assert read.text == written.text
        assert not from_replica(read)
    assert page.json() == [written.json()]
    assert "Read-After" not in brought.headers
    assert "Read-From" in paths["/users"]["get"]["responses"]["200"]["headers"]
    assert "Read-After" in [each["name"] for each in paths["/users/{user_id}"]["get"]["parameters"]]
    assert "Read-After" in paths["/users"]["post"]["responses"]["201"]["headers"]


def test_with_reads_at_the_replica_none_fails_when_it_is_killed_or_frozen(
    spread: Service, pair: tuple[Cluster, Cluster]
) -> None:
    standby = pair[1]
    with Reads(spread.url, clients=4) as load:
        frozen = standby.freeze()
        began = time.monotonic()
        until(lambda: load.statuses(began, "GET")[200] > 50, "reads go on at the primary")
        standby.thaw(frozen)
        until(lambda: from_replica(spread.client.get("/users")), "reads are back at the replica")
        standby.stop(signal.SIGQUIT)
        killed = time.monotonic()
        until(lambda: load.statuses(killed, "GET")[200] > 50, "reads go on at the primary")
        standby.start()
    assert set(load.statuses()) == {200}
    assert longest_gap(load, began) < 2


def test_a_read_that_meets_a_lock_at_the_replica_only_is_served_by_the_primary(
    spread: Service, pair: tuple[Cluster, Cluster], database: TestDatabase
) -> None:
    """A standby that is behind still has the lock of a transaction that the primary has ended."""
    locked = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND relation = 'public.user'::regclass"
    with TestDatabase(pair[1], database.name).as_superuser() as conn:
        with database.connect() as holder, holder.transaction():
            holder.execute('LOCK TABLE public."user" IN ACCESS EXCLUSIVE MODE')
            until(lambda: conn.execute(locked).fetchone(), "the standby has the lock")
            conn.execute("SELECT pg_wal_replay_pause()")
        try:
            read = spread.client.get("/users")
        finally:
            conn.execute("SELECT pg_wal_replay_resume()")
    assert (read.status_code, from_replica(read)) == (200, False)


@pytest.mark.parametrize("watch", ["answered", "refused"])
def test_a_slow_read_stays_at_the_primary(service: Service, database: TestDatabase, watch: str) -> None:
    """Also when the primary refuses the connections of the watch, because of a limit."""
    with locked(database), database.as_superuser() as conn:
        if watch == "refused":
            conn.execute(f"ALTER ROLE {database.name} CONNECTION LIMIT 0")
            conn.execute(f"SELECT pg_terminate_backend(pid) {WATCHES}")
        read = service.client.get("/users")
        watches = conn.execute(f"SELECT {WATCHES}").fetchall()
    assert bool(watches) == (watch == "answered")
    assert "reads go to a replica" not in service.log
    assert (read.status_code, from_replica(read)) == (504, False)


def test_a_pooler_that_takes_the_place_of_the_primary_is_watched_too(
    database: TestDatabase, pair: tuple[Cluster, Cluster]
) -> None:
    primary, standby = pair
    with Relay(primary.port, refuses=False) as relay:
        url = database.url(primary).replace(f":{primary.port}/", f":{relay.port}/")
        with Service({**SHORT, "DATABASE_URL": url, "DATABASE_READ_URL": database.url(standby)}) as service:
            relay.refuses = True
            relay.cut()
            until(lambda: "a pooler answers" in service.log, "it is noticed")
            until(lambda: not from_replica(service.client.get("/users")), "the primary serves reads again")


def test_check_says_the_same_of_the_replica_as_of_the_primary(
    database: TestDatabase, pair: tuple[Cluster, Cluster]
) -> None:
    primary, standby = pair
    urls = {"DATABASE_URL": database.url(primary), "DATABASE_READ_URL": database.url(primary, standby)}
    checked = run_command(urls, "check")
    wrong = run_command({**urls, "DATABASE_READ_URL": database.url(primary)}, "check")
    said = re.findall(r"^(?:replica: )?((?:PostgreSQL|TLS|connections)\W[^;\n]*)", checked.stdout, re.MULTILINE)
    assert checked.returncode == 0, checked.stderr
    assert len(said) == 6
    assert said[3:] == said[:3]
    assert (wrong.returncode, wrong.stdout.count("PostgreSQL")) == (2, 0)
    assert wrong.stderr == "DATABASE_READ_URL: the server is not a standby\n"


def test_a_silent_replica_does_not_hold_up_the_next_one(database: TestDatabase, pair: tuple[Cluster, Cluster]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"127.0.0.1:{silent.getsockname()[1]},{database.url(*pair).partition('@')[2]}"
        target = "target_session_attrs=standby&connect_timeout=3"
        url = f"postgresql://{database.name}:{quote(PASSWORD)}@{hosts}?{target}"
        began = time.monotonic()
        with connect_to_host(psycopg.connect, url, autocommit=True) as conn:
            took = time.monotonic() - began
            assert conn.info.port == pair[1].port
    assert took < 2, "each silent host may take 2 s or more"


def test_without_its_replica_a_service_serves_from_the_primary(database: TestDatabase) -> None:
    nowhere = f"postgresql://nobody@127.0.0.1:{free_port()}/nothing"
    settings = {**SHORT, **database.environment, "DATABASE_READ_URL": nowhere, "READS": "replica"}
    with Service(settings) as service:
        created = service.client.post("/users", json=USER)
        read = service.client.get(created.headers["Location"], headers={"Read-After": created.headers["Read-After"]})
    assert (read.text, from_replica(read)) == (created.text, False)
    assert service.log.count("no read can go to a replica") == 1


def test_a_start_when_only_a_standby_is_up_serves_reads(database: TestDatabase, pair: tuple[Cluster, Cluster]) -> None:
    primary, standby = pair
    both = database.url(primary, standby)
    settings = {**SHORT, "DATABASE_URL": both, "DATABASE_READ_URL": both, "READS": "replica"}
    with Service(settings) as service:
        created = service.client.post("/users", json=USER)
    with psycopg.connect(primary.conninfo()) as conn:
        behind = "SELECT 1 FROM pg_stat_replication WHERE replay_lsn < pg_current_wal_lsn()"
        until(lambda: not conn.execute(behind).fetchone(), "the standby has all")
    primary.stop()
    with Service(settings) as service:  # waits for /readyz
        read = service.client.get(created.headers["Location"])
        write = service.client.post("/users", json=USER)
        promote(standby)
        until(lambda: service.client.patch(created.headers["Location"], json={"lname": "On"}).status_code == 200, "on")
        until(lambda: not from_replica(service.client.get("/users")), "the promoted standby is no replica")
    assert (read.text, from_replica(read)) == (created.text, True)
    assert write.status_code == 503
