import httpx


def test_a_user_is_created_and_read_back(client: httpx.Client) -> None:
    user = {"id": 1, "fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}
    assert client.post("/users", json=user).status_code == 201
    assert client.get("/users/1").json()["email"] == "ada@example.com"
