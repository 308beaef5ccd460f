"""A round with the client that openapi-python-client makes."""

import sys

from users_client import Client
from users_client.api.service import readyz
from users_client.api.users import change_user, create_user, delete_user, list_users, read_user
from users_client.models import Problem, User, UserChange, UserCreation

url, ready = sys.argv[1:]
client = Client(base_url=url)

ids = []
for name in ("one", "two"):
    body = UserCreation(fname=name, lname="Python", email=f"{name}@python.example.com", password="correct horse")
    created = create_user.sync_detailed(client=client, body=body)
    assert isinstance(created.parsed, User)
    assert created.headers["Location"] == f"/users/{created.parsed.id}"
    ids.append(created.parsed.id)
first, second = ids
assert first >= 2**31

page = list_users.sync_detailed(client=client, limit=1, after=first - 1)
assert isinstance(page.parsed, list)
assert [user.id for user in page.parsed] == [first]
assert 'rel="next"' in page.headers["Link"]
following = list_users.sync(client=client, limit=1, after=first)
assert isinstance(following, list)
assert [user.id for user in following] == [second]

changed = change_user.sync(first, client=client, body=UserChange(fname="three"))
assert isinstance(changed, User)
assert changed.fname == "three"
refused = change_user.sync(first, client=client, body=UserChange(fname=""))
assert isinstance(refused, Problem)
assert refused.code == "invalid-request"
assert refused.errors[0].loc == ["body", "fname"]

assert delete_user.sync_detailed(first, client=client).status_code == 204
gone = read_user.sync(first, client=client)
assert isinstance(gone, Problem)
assert gone.code == "user-not-found"

unready = readyz.sync(client=Client(base_url=ready))
assert isinstance(unready, Problem)
assert unready.failed == "database"
