import re
from collections import Counter

from tests.api.test_logs import JSON, lines
from tests.support.parallel import at_once
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase, installed
from tests.support.process import Service


def test_an_outage_is_logged_when_it_begins_and_when_it_ends_with_a_count() -> None:
    with Cluster(installed()["18"]) as own_cluster:
        database: TestDatabase = own_cluster.create_database()
        settings = database.environment | JSON | {"WORKER_THREADS": "4"}
        with Service(settings) as service:
            own_cluster.stop()
            for _ in range(5):
                statuses = Counter(at_once([lambda: service.client.get("/users").status_code] * 10))
            assert set(statuses) == {503}
            until(lambda: "cannot connect" in service.log, "its beginning is told")
            own_cluster.start()
            until(lambda: service.client.get("/users").status_code == 200, "it serves again")
            until(lambda: "connected again" in service.log, "its end is told")
        told = [line["message"] for line in lines(service) if line["logger"] != "service.request" and "message" in line]
    about = [message for message in told if "connect" in message or "pool" in message]
    print(about)
    assert [message.split(",")[0].split(":")[0] for message in about].count("cannot connect") == 1
    assert sum(bool(re.fullmatch(r"connected again, [\d.]+ s and \d+ attempts later", each)) for each in about) == 1
    assert len(about) == 2
