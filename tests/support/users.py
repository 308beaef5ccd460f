"""Users to test with."""

from secrets import token_hex
from typing import Any

import httpx

User = dict[str, Any]

LARGEST_CLIENT_ID = 2**31 - 1


def new_user(**fields: object) -> User:
    """Return a body that creates a user nobody has created before, with these fields different."""
    user = {"fname": "Ada", "lname": "Lovelace", "email": f"{token_hex(8)}@example.com", "password": "correct horse"}
    return {**user, **fields}


def create(client: httpx.Client, **fields: object) -> User:
    """Create such a user and return what was answered."""
    response = client.post("/users", json=new_user(**fields))
    assert response.status_code == 201, response.text
    user: User = response.json()
    return user


def signs_in(client: httpx.Client, email: str, password: str = "correct horse") -> bool:
    """Tell whether these credentials are good."""
    response = client.post("/users/authenticate", json={"email": email, "password": password})
    assert response.status_code in (200, 401), response.text
    return response.status_code == 200
