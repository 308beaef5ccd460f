"""The message to systemd."""

import socket
from pathlib import Path

import pytest

from service.extras import systemd


def test_systemd_hears_that_the_service_is_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = str(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    systemd.notify("READY=1")  # nobody listens: the service serves all the same
