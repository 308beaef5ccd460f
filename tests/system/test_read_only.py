"""A container whose file systems are read-only, or nearly full."""

import sys

import pytest

from tests.support.polling import until
from tests.support.postgres import TestDatabase
from tests.support.process import Service

# Each mount becomes read-only in a namespace of the service's own; a shared memory of its own is writable.
READ_ONLY = "for mount in $(awk '{print $5}' /proc/self/mountinfo | sort -r); do mount -o remount,bind,ro $mount; done"
NO_SHARED_MEMORY = "mount -t tmpfs -o ro tmpfs /dev/shm"
PLACES = {
    "nothing is writable": f"{NO_SHARED_MEMORY}; {READ_ONLY}",
    "shared memory is writable": f"{READ_ONLY}; mount -t tmpfs -o size=16m tmpfs /dev/shm",
    "temporary files have 64 KiB": f"{NO_SHARED_MEMORY}; {READ_ONLY}; mount -t tmpfs -o size=64k tmpfs /mnt",
}


@pytest.mark.parametrize(
    ("place", "workers"),
    [
        ("nothing is writable", "1"),
        ("shared memory is writable", "1"),
        ("shared memory is writable", "2"),
        ("temporary files have 64 KiB", "1"),
    ],
)
def test_it_serves_where_files_are_read_only(place: str, workers: str, database: TestDatabase) -> None:
    prefix = ["unshare", "--mount", "sh", "-c", f'{{ {PLACES[place]}; }} 2>/dev/null; exec "$@"', "sh"]
    settings = database.environment | {"WORKERS": workers, "TMPDIR": "/mnt"}
    argv = [*prefix, sys.executable, "-m", "service", "serve"]
    with Service(settings, argv=argv) as service:
        until(lambda: service.log.count("startup complete") == int(workers), "the workers start")
        assert service.client.get("/users").json() == []
        assert "http_server_request_duration_seconds_count" in service.client.get("/metrics").text
        assert service.client.get("/pool").status_code == 200
        assert service.stop() == 0
        assert " ERROR " not in service.log
        assert " WARNING " not in service.log
