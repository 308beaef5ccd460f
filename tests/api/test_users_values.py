import unicodedata

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.users.models import UserChange
from tests.support.process import Service
from tests.support.users import create, new_user, signs_in

ONE = 1  # the id of a user
LONGEST_EMAIL = f"{'x' * 64}@{'a' * 63}.{'b' * 63}.{'c' * 57}.com"


@pytest.fixture(scope="module", autouse=True)
def _somebody(service: Service) -> None:
    create(service.client, id=ONE)


@settings(max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=20))
def test_a_name_that_is_taken_is_read_back_the_same(client: httpx.Client, fname: str, lname: str) -> None:
    response = client.patch(f"/users/{ONE}", json={"fname": fname, "lname": lname})
    try:
        taken = UserChange(fname=fname, lname=lname).model_dump()
    except ValidationError:
        assert response.status_code == 422
        return
    read = client.get(f"/users/{ONE}").json()
    assert {name: read[name] for name in taken} == {name: response.json()[name] for name in taken} == taken


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  Ada  ", "Ada"),
        ("Ame\N{COMBINING ACUTE ACCENT}lie", "Amélie"),
        ('O\'Brien; DROP TABLE "user" --', 'O\'Brien; DROP TABLE "user" --'),
        ("\N{PILE OF POO}" * 100, "\N{PILE OF POO}" * 100),
        (f"{' ' * 30_000}Ada{' ' * 30_000}", "Ada"),
    ],
)
def test_a_name_is_trimmed_and_composed_and_otherwise_kept(client: httpx.Client, given: str, kept: str) -> None:
    user = create(client, fname=given)
    assert user["fname"] == kept
    assert client.patch(f"/users/{user['id']}", json={"lname": given}).json()["lname"] == kept
    assert client.get(f"/users/{user['id']}").json()["lname"] == kept


@pytest.mark.parametrize("email", [LONGEST_EMAIL, "a+tag@example.com", "o'brien@sub.example.co.uk", "ÉDA@example.com"])
def test_a_valid_email_is_taken(client: httpx.Client, email: str) -> None:
    user = create(client, email=email)
    assert user["email"] == email
    assert signs_in(client, email)


@pytest.mark.parametrize(
    "email",
    [
        "Mixed.Case@Example.COM",
        "ada@b\N{LATIN SMALL LETTER U WITH DIAERESIS}cher.com",
        "bob@xn--bcher-kva.com",
        "e\N{COMBINING ACUTE ACCENT}va@example.com",
        "carol@\N{FULLWIDTH LATIN SMALL LETTER E}xample.com",
    ],
)
def test_an_email_signs_in_and_is_found_as_it_was_given_at_sign_up(client: httpx.Client, email: str) -> None:
    user = create(client, email=email)
    assert client.get("/users", params={"email": email}).json() == [user]
    assert signs_in(client, email)
    assert client.post("/users", json=new_user(email=email)).json()["code"] == "email-taken"


def test_an_email_is_unique_without_regard_to_the_case_of_any_letter(client: httpx.Client) -> None:
    create(client, email="zo\N{LATIN SMALL LETTER E WITH DIAERESIS}@example.com")
    again = new_user(email="ZO\N{LATIN CAPITAL LETTER E WITH DIAERESIS}@example.com")
    assert client.post("/users", json=again).json()["code"] == "email-taken"


@pytest.mark.parametrize(
    "password",
    [
        "12345678",
        "x" * 128,
        " " * 8,
        "  spaces  around  ",
        "tab\tand\nline\x01",
        "\N{PILE OF POO}" * 8,
        "\N{PILE OF POO}" * 128,
        "cafe\N{COMBINING ACUTE ACCENT} noir",
        '"\\u0041\\"',
    ],
)
def test_a_password_is_kept_exactly_as_received(client: httpx.Client, password: str) -> None:
    email = create(client, password=password)["email"]
    others = {password.strip(), password + " ", password[:-1], password.swapcase()}
    others |= {unicodedata.normalize(form, password) for form in ("NFC", "NFKC")}
    assert signs_in(client, email, password)
    assert not any(signs_in(client, email, other) for other in others - {password})


@pytest.mark.parametrize("password", ["1234567", "\N{PILE OF POO}" * 7, "x" * 129])
def test_a_password_of_another_length_is_refused(client: httpx.Client, password: str) -> None:
    response = client.post("/users", json=new_user(password=password))
    assert response.status_code == 422
    assert [error["loc"] for error in response.json()["errors"]] == [["body", "password"]]
