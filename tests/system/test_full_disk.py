"""A disk that fills up under PostgreSQL."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.load import Load
from tests.support.namespaces import run
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import Service

SIZE = 32 * 1024 * 1024  # bytes


@pytest.fixture
def disk(victim: Cluster) -> Iterator[Path]:
    """A small disk of PostgreSQL's own."""
    folder = victim.folder / "disk"
    folder.mkdir()
    run("mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder))
    owner = victim.data.stat()
    os.chown(folder, owner.st_uid, owner.st_gid)
    folder.chmod(0o700)
    yield folder
    victim.stop()
    run("umount", str(folder))


def free(disk: Path) -> int:
    found = os.statvfs(disk)
    return found.f_bavail * found.f_frsize


def test_while_the_disk_is_full_reads_go_on_and_writes_are_refused(
    disk: Path, service: Service, database: TestDatabase, record_figure: Callable[[str], None]
) -> None:
    with database.as_superuser() as conn:
        conn.execute(f"CREATE TABLESPACE small LOCATION '{disk}'")
        conn.execute('ALTER TABLE public."user" SET TABLESPACE small')
        for index in ("user_pkey", "user_email_lower_key", "user_email_folded_key"):
            conn.execute(f"ALTER INDEX public.{index} SET TABLESPACE small")
    with Load(service.url) as load:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(free(disk)))
        until(lambda: load.statuses(method="POST")[503] > 20, "creations are refused")
        refused = service.client.post(
            "/users", json={"fname": "Ada", "lname": "Full", "email": "full@example.com", "password": "p" * 8}
        )
        seen = load.statuses(method="GET")[200]
        until(lambda: load.statuses(method="GET")[200] > seen + 50, "reads go on")
        ballast.unlink()
        acknowledged = load.statuses(method="POST")[201]
        until(lambda: load.statuses(method="POST")[201] > acknowledged + 20, "creations are acknowledged again")
    load.reconcile(database)
    record_figure(f"full disk: {dict(load.statuses())}; reads {dict(load.statuses(method='GET'))}")
    assert (refused.status_code, refused.json()["code"]) == (503, "database-unavailable")
    assert not load.unexpected({200, 201, 503})
    assert set(load.statuses(method="GET")) == {200}
