"""Correctness before speed: what each contender answers to the workloads is compared with what ours does."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import httpx

from tests.bench.database import restore
from tests.bench.server import Server
from tests.support.postgres import TestDatabase

TIMES = ("created_at", "updated_at")
READS = ("/users/5000", "/users?limit=100", "/users?limit=100&after=4321", "/users?limit=1000&after=7777")
ARGON2ID = "$argon2id$v=19$m=19456,t=2,p=1$"


def check(ours: Server, others: list[Server], database: TestDatabase) -> None:
    """Fail when one of the others answers a workload with another status, other fields or other values than ours."""
    restore(database)
    expected = {**_reads(ours, READS), **_writes(ours, database)}
    for server in others:
        workloads = server.contender.workloads
        found = _reads(server, READS if "page" in workloads else READS[:1])
        if "create" in workloads:
            found |= _writes(server, database)
        for what, value in found.items():
            if value != expected[what]:
                name = server.contender.name
                raise AssertionError(f"{what}: {name} answers {value!r:.900}, ours answers {expected[what]!r:.900}")
    restore(database)


def _reads(server: Server, paths: Sequence[str]) -> dict[str, Any]:
    return {path: _value(httpx.get(server.url + path, timeout=10), 200) for path in paths}


def _writes(server: Server, database: TestDatabase) -> dict[str, Any]:
    """Return what the writes answer, without what differs from one to the next: ids and times."""
    email = f"{server.contender.name}@example.com"
    new = {"fname": "Grace", "lname": "Hopper", "email": email, "password": "nanoseconds"}
    created = _value(httpx.post(f"{server.url}/users", json=new, timeout=10), 201)
    changed = _value(httpx.patch(f"{server.url}/users/9999", json={"fname": "Ada"}, timeout=10), 200)
    read = _value(httpx.get(f"{server.url}/users/9999", timeout=10), 200)
    assert changed == read, f"{server.contender.name} answers a change with {changed}, and then reads {read}"
    assert changed["updated_at"] > changed["created_at"], f"{server.contender.name} leaves updated_at: {changed}"
    with database.as_superuser() as conn:
        query = 'SELECT left(password_hash, %s), length(password_hash) FROM "user" WHERE email = %s'
        stored = conn.execute(query, (len(ARGON2ID), email)).fetchone()
    assert stored == (ARGON2ID, 97), f"{server.contender.name} stores a hash that begins {stored}"
    assert created.pop("id") >= 2**31
    assert created.pop("email") == email
    for name in TIMES:
        del created[name]
    del changed["updated_at"]
    return {"create": [created, list(created)], "update": [changed, list(changed)]}


def _value(response: httpx.Response, status: int) -> Any:
    """Return the JSON, each time of it as a time: Z and +00:00 are the same."""
    assert response.status_code == status, f"{response.request.url}: {response.status_code} {response.text}"
    value = response.json()
    for row in value if isinstance(value, list) else [value]:
        for name in TIMES:
            row[name] = datetime.fromisoformat(row[name])
    return value
