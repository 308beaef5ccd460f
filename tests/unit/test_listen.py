"""Which addresses HOST stands for."""

import errno
import socket
from pathlib import Path
from typing import Any

import pytest

from service.extras.http import listen
from service.settings import Settings, SettingsError, load

NO_FILE = Path("/nowhere/.env")
LOOPBACK = {"127.0.0.1", "::1"}
EVERY_ADDRESS = {"0.0.0.0", "::"}


def bound_to(host: str) -> set[str]:
    """Return the addresses of the sockets for HOST, and see that they have one port."""
    with listen.bind(load({"HOST": host, "PORT": "0"}, NO_FILE)) as bound:
        assert len({each.getsockname()[1] for each in bound}) == 1
        assert len({listen.url(each) for each in bound}) == len(bound)
        return {each.getsockname()[0] for each in bound}


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", {"127.0.0.1"}),
        ("0.0.0.0", {"0.0.0.0"}),
        ("::1", {"::1"}),
        ("[::1]", {"::1"}),
        ("localhost", LOOPBACK),
        ("LocalHost", LOOPBACK),
        ("*", EVERY_ADDRESS),
        ("::", EVERY_ADDRESS),
        ("[::]", EVERY_ADDRESS),
        ("0:0:0:0:0:0:0:0", EVERY_ADDRESS),
    ],
)
def test_a_host_stands_for_these_addresses(host: str, addresses: set[str]) -> None:
    assert bound_to(host) == addresses


@pytest.mark.parametrize("host", ["localhost", "*", "::"])
@pytest.mark.parametrize("error", [errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT])
def test_a_machine_without_ipv6_serves_ipv4(monkeypatch: pytest.MonkeyPatch, host: str, error: int) -> None:
    class Socket(socket.socket):
        def bind(self, address: Any) -> None:
            if self.family == socket.AF_INET6:
                raise OSError(error, "no IPv6")
            super().bind(address)

    monkeypatch.setattr(socket, "socket", Socket)
    assert bound_to(host) <= {"127.0.0.1", "0.0.0.0"}
    with pytest.raises(SettingsError, match="no IPv6"):
        bound_to("::1")


@pytest.mark.parametrize("taken", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken_in_one_family_stops_the_start(taken: str) -> None:
    family = socket.AF_INET6 if ":" in taken else socket.AF_INET
    with socket.create_server((taken, 0), family=family) as other:
        settings = load({"HOST": "localhost", "PORT": str(other.getsockname()[1])}, NO_FILE)
        with pytest.raises(SettingsError, match="in use"), listen.bind(settings) as bound:
            listen.listen(bound, 1, settings)


def test_every_address_is_accepted_from() -> None:
    settings = Settings(host="localhost", port=0)
    with listen.bind(settings) as bound:
        copies = listen.listen(bound, 8, settings)
        assert {each.getsockname()[0] for each in copies} == LOOPBACK
        for each in bound:
            socket.create_connection(each.getsockname()[:2], timeout=1).close()
        for each in copies:
            each.close()
