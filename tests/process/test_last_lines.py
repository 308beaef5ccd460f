"""What a process logged before its end is there."""

import json
import time

import pytest

from tests.api.test_logs import JSON, lines
from tests.support.polling import until
from tests.support.postgres import Cluster
from tests.support.process import Service


def test_requests_that_were_answered_well_before_a_kill_have_their_lines(cluster: Cluster) -> None:
    with Service(cluster.create_database().environment | JSON) as service:
        ended: list[float] = []
        while not ended or ended[-1] < ended[0] + 1.5:
            service.client.get("/users", headers={"X-Request-ID": f"r{len(ended)}"})
            ended.append(time.monotonic())
        service.process.kill()
        service.process.wait(10)
        told = {line["request_id"] for line in lines(service)}
    assert {f"r{number}" for number, end in enumerate(ended) if end < ended[-1] - 1} <= told


@pytest.mark.parametrize("count", [1, 2])
def test_the_last_line_of_every_process_is_there(count: int, cluster: Cluster) -> None:
    settings = cluster.create_database().environment | JSON | {"WORKERS": str(count)}
    with Service(settings) as service:
        until(lambda: service.log.count("Application startup complete") == count, "all serve")
    assert service.log.count("Finished server process") == count
    assert service.log.count("Stopping parent process") == count - 1
    assert all(json.loads(line) for line in service.log.splitlines())
