"""How long a failed login takes tells nothing of what is stored. It is measured alone: a hash of 64 MiB takes cores."""

from time import perf_counter

import httpx
import pytest
from argon2 import PasswordHasher

from tests.support.postgres import TestDatabase
from tests.support.users import create, new_user

pytestmark = pytest.mark.alone

HASHES = {
    "today's": None,
    "64 MiB": PasswordHasher(time_cost=3, memory_cost=65_536, parallelism=4).hash("correct horse"),
    "unusable": "$argon2id$none",
    "truncated": "$argon2id$v=19$m=19456,t=2,p=1$JVaaRw1TGs6dKNDtr74+TA$bQga5",
}


def test_the_time_does_not_tell_what_is_stored(client: httpx.Client, database: TestDatabase) -> None:
    """Neither whether the email is known, nor whether its hash has other parameters."""
    emails = {"unknown": new_user()["email"]}
    with database.connect() as conn:
        for name, stored in HASHES.items():
            emails[name] = create(client)["email"]
            if stored:
                conn.execute('UPDATE "user" SET password_hash = %s WHERE email = %s', (stored, emails[name]))
        quickest = dict.fromkeys(emails, 60.0)  # what disturbs a measurement only adds to it
        for rounds in range(20):
            for name, email in emails.items():
                start = perf_counter()
                answer = client.post("/users/authenticate", json={"email": email, "password": "wrong horse"})
                quickest[name] = min(quickest[name], perf_counter() - start)
                assert answer.status_code == 401
            conn.execute("DELETE FROM failed_login")
            if rounds and max(quickest.values()) - min(quickest.values()) < 0.05:
                return
    raise AssertionError(quickest)
