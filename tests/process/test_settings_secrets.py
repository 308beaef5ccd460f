"""A password is in no message, whatever is wrong with where it stands."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from service.settings import SettingsError, load
from tests.support.checkout import Checkout, copied

SECRET = "hunter2"


@pytest.fixture(scope="module")
def checkout() -> Iterator[Checkout]:
    with copied() as checkout:
        yield checkout


@pytest.mark.parametrize(
    "url",
    [
        SECRET,
        f"mysql://user:{SECRET}@localhost/db",
        f"postgresql://user:%zz{SECRET}@localhost/db",
        f"postgresql://user:{SECRET}@localhost/db?nonsense=1",
        f"postgresql://user:{SECRET}@localhost:port/db",
        f"postgresql://user:{SECRET}@localhost:99999/db",
        f"postgresql://user:p@{SECRET}@localhost/db",
        f"postgresql://user:p/{SECRET}@localhost/db",
    ],
)
def test_a_malformed_url_is_refused_without_showing_its_password(url: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load({"DATABASE_URL": url}, Path("/nowhere/.env"))
    line = str(refused.value)
    assert SECRET not in line
    assert "\n" not in line
    assert line.startswith("DATABASE_URL")
    assert "postgresql://user:password@host:port/name" in line


def test_a_value_in_the_url_that_only_libpq_knows_stops_the_start_too(checkout: Checkout) -> None:
    started = checkout.run("serve", {"DATABASE_URL": f"postgresql://user:{SECRET}@localhost/db?sslmode=nonsense"})
    assert (started.returncode, started.stderr.count("\n")) == (2, 1)
    assert started.stderr.startswith("DATABASE_URL:")
    assert "sslmode" in started.stderr
    assert SECRET not in started.stderr


@pytest.mark.parametrize(
    "given",
    [
        {
            "DATABASE_HOSTNAME": "/nowhere",
            "DATABASE_NAME": "db",
            "DATABASE_USERNAME": "user",
            "DATABASE_PASSWORD": SECRET,
        },
        {"DATABASE_URL": f"postgresql://user:{SECRET}@127.0.0.1:1/db"},
        {"DATABASE_URL": f"host=/nowhere dbname=db user=user password={SECRET}"},
        {"DATABASE_URL": f"postgresql:///db?host=/nowhere&password={SECRET}"},
    ],
    ids=["variables", "URL", "keywords", "query"],
)
def test_check_shows_every_setting_but_no_secret(checkout: Checkout, given: dict[str, str]) -> None:
    checked = checkout.run("check", given)
    assert SECRET not in checked.stdout + checked.stderr
    assert "\nDATABASE_PASSWORD=" in checked.stdout
    assert "\nDATABASE_URL=" in checked.stdout


@pytest.mark.parametrize(
    "line",
    [
        b"DATABASE_PASSWORD",
        f"DATABASE_PASSWORD {SECRET}".encode(),
        f"={SECRET}".encode(),
        f"DATABASE_PASSWORD='{SECRET}".encode(),
        f"DATABASE_PASSWORD={SECRET}\xe9".encode("latin-1"),
    ],
    ids=["no value", "no sign", "no name", "no end", "not UTF-8"],
)
def test_a_malformed_line_of_the_file_is_refused_by_its_number(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / ".env"
    file.write_bytes(b"WORKERS=1\n" + line + b"\n")
    with pytest.raises(SettingsError) as refused:
        load({}, file)
    message = str(refused.value)
    assert message.startswith(str(file))
    assert SECRET not in message
    assert "\n" not in message
    assert "utf-8" in message or "line 2" in message
