"""`make load`: it shows what it says it shows, and leaves nothing behind."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.polling import until
from tests.postgres import Cluster, free_port
from tests.process import CHECKOUT, Service, environment

LOAD = [sys.executable, "-m", "tests.load"]
ADA = {"id": 1, "fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}
SMALL = {"WORKER_THREADS": "1", "QUEUE_LENGTH": "2"}


@pytest.fixture(scope="module")
def service(cluster: Cluster) -> Iterator[Service]:
    with Service(cluster.create_database().environment | SMALL) as service:
        assert service.client.post("/users", json=ADA).status_code == 201
        yield service


def run(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LOAD, *argv], cwd=CHECKOUT, env=environment({"COLUMNS": "120"}), capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip


def answered(service: Service) -> int:
    """Return how many requests to /users the service says it answered."""
    families = text_string_to_metric_families(httpx.get(f"{service.url}/metrics", timeout=30).text)
    return round(
        sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == "http_server_request_duration_seconds_count"
            and sample.labels["http_route"].startswith("/users")
        )
    )


def rows(output: str) -> dict[str, list[str]]:
    """Return the cells of the summary by phase."""
    found = re.findall(r"^ *(few again|few|crowd) {2,}(.*)$", output, re.MULTILINE)
    return {name: re.split(r" {2,}", cells.strip()) for name, cells in found}


def test_a_crowd_is_refused_in_part_a_few_are_not_and_the_service_counts_the_same(service: Service) -> None:
    before = answered(service)
    done = run("--url", service.url, "--seconds", "5", "--clients", "40")
    print(done.stdout, done.stderr)
    assert done.returncode == 0
    assert f"{service.url}/pool" in done.stdout
    table = rows(done.stdout)
    assert list(table) == ["few", "crowd", "few again"]
    accepted, refused = (
        {name: int(cells[column].replace(",", "")) for name, cells in table.items()} for column in (1, 5)
    )
    assert min(accepted.values()) > 0
    assert refused["crowd"] > 0
    assert {name: cells[-1] for name, cells in table.items()} == dict.fromkeys(table, "0"), "something failed"
    made = 2 * service.log.count("POST /users 201")  # and deleted
    told = sum(accepted.values()) + sum(refused.values())
    assert 0 <= answered(service) - before - told <= made + 50, "one list at the start, and who was cut off at the end"
    assert [user["id"] for user in service.client.get("/users").json()] == [1]


def test_ctrl_c_ends_it_with_what_was_measured_and_no_user_left(service: Service) -> None:
    load = subprocess.Popen(
        [*LOAD, "--url", service.url, "--seconds", "60"], cwd=CHECKOUT, env=environment({}),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    before = answered(service)
    until(lambda: answered(service) > before + 20, "it is at work")
    load.send_signal(signal.SIGINT)
    output, _ = load.communicate(timeout=30)
    assert load.returncode == 130
    assert list(rows(output)) == ["few"]
    assert "Traceback" not in output
    assert [user["id"] for user in service.client.get("/users").json()] == [1]


def test_it_says_that_nobody_answers() -> None:
    done = run("--url", f"http://127.0.0.1:{free_port()}")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"nobody answers at http://127\.0\.0\.1:\d+: start the service .*\n", done.stderr)


@pytest.mark.parametrize("url", ["http://192.0.2.1:8000", "http://example.com", "http://[2001:db8::1]:80"])
def test_it_asks_this_machine_only(url: str) -> None:
    done = run("--url", url)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{urlsplit(url).hostname} is not this machine: `make load` asks nobody else\n"
