"""What Prometheus and its own tools say of /metrics and of the alerts."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, free_port, installed
from tests.support.process import CHECKOUT, Service

ALERTS = CHECKOUT / "service" / "telemetry" / "alerts.yml"
TESTS = Path(__file__).parent / "alerts_test.yml"


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with (
        Cluster(installed()["18"]) as cluster,
        Service({**cluster.create_database().environment, "WORKER_THREADS": "2"}) as service,
    ):
        yield service


def promtool(*command: str | Path, text: str = "") -> str:
    """Return what promtool says of the command, which must succeed."""
    done = subprocess.run(["promtool", *command], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_promtool_finds_nothing_to_complain_of_in_the_metrics(service: Service) -> None:
    assert promtool("check", "metrics", text=service.client.get("/metrics").text) == ""


def test_each_alert_is_raised_when_it_should_be_and_not_otherwise(tmp_path: Path) -> None:
    assert f"{ALERTS.read_text().count('alert: ')} rules found" in promtool("check", "rules", ALERTS)
    tests = TESTS.read_text()
    for alert in re.findall("alert: (.*)", ALERTS.read_text()):
        assert f"alertname: {alert}\n" in tests, alert
    (tmp_path / "test.yml").write_text(tests.replace("[ALERTS]", f"[{ALERTS}]"))
    promtool("test", "rules", tmp_path / "test.yml")


def test_each_metric_of_an_alert_is_served(service: Service) -> None:
    served = service.client.get("/metrics").text
    named = set(re.findall(r"series: (\w+)\{", TESTS.read_text()))
    assert [name for name in named if f"\n{name}" not in served] == []


def test_prometheus_scrapes_the_service_and_loads_the_alerts(service: Service, tmp_path: Path) -> None:
    target = service.url.removeprefix("http://")
    (tmp_path / "prometheus.yml").write_text(f"""
global: {{scrape_interval: 1s, evaluation_interval: 1s}}
rule_files: [{ALERTS}]
scrape_configs: [{{job_name: users, static_configs: [{{targets: ["{target}"]}}]}}]
""")
    url = f"http://127.0.0.1:{free_port()}"
    address = url.removeprefix("http://")
    process = subprocess.Popen(
        ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address={address}", "--log.level=error"],
        cwd=tmp_path,
    )

    def ask(query: str) -> list[Any]:
        try:
            answer = httpx.get(f"{url}/api/v1/query", params={"query": query}, timeout=30)
            found: list[Any] = answer.json()["data"]["result"] if answer.status_code == 200 else []
        except httpx.TransportError:
            return []
        return found

    try:
        until(lambda: ask('up{job="users"} == 1'), "it has scraped the service")
        assert ask("http_server_request_duration_seconds_bucket")
        rules = httpx.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"][0]["rules"]
        assert {rule["health"] for rule in rules} <= {"ok", "unknown"}
    finally:
        process.terminate()
        process.wait(30)
