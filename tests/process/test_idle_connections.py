import select

import pytest

from tests.support.process import Service
from tests.support.raw_http import Answer, connect

pytestmark = pytest.mark.usefixtures("forked")


def test_a_connection_stays_open_while_its_client_pauses(service: Service) -> None:
    """A proxy keeps it for a minute, and would send a request into the closing: its client saw a reset."""
    with connect(service.url) as peer:
        for pause in (6, 0):
            peer.sendall(b"GET /users HTTP/1.1\r\nHost: x\r\n\r\n")
            received = b""
            while not received.endswith(b"]\n"):  # head and body may come one by one
                received += (part := peer.recv(65536))
                assert part, f"closed after {received!r}"
            assert Answer(received).status_code == 200
            closed, _, _ = select.select([peer], [], [], pause)
            assert not closed, f"it was closed within {pause} seconds"
