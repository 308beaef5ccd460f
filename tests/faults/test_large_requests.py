"""Clients whose requests cost more than others of their kind."""

import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from service.extras.http.protocol import MAX_PACKETS
from tests.api.test_refusals import filled
from tests.support.postgres import Cluster
from tests.support.process import Service
from tests.support.raw_http import Answer, connect


@pytest.fixture(scope="module")
def busy(cluster: Cluster) -> Iterator[Service]:
    """A service whose only thread is held, so that what takes no thread has to wait for its share."""
    with filled(cluster.create_database(), QUEUE_LENGTH="100") as service:
        yield service


def send_bodies(service: Service, clients: int, pieces: list[bytes]) -> float:
    """Send bodies piece by piece, a client each; return the seconds that the last two pieces took to be answered."""
    head = f"POST /users HTTP/1.1\r\nHost: x\r\nContent-Length: {sum(map(len, pieces))}\r\n\r\n"
    began = 0.0
    with ExitStack() as stack:
        peers = [stack.enter_context(connect(service.url)) for _ in range(clients)]
        for piece in [head.encode(), *pieces]:
            if piece is pieces[-2]:
                began = time.monotonic()
            for peer in peers:
                peer.sendall(piece)
            assert service.client.get("/livez").status_code == 200  # so it has come
        for peer in peers:
            assert Answer(peer.recv(65536)).status_code == 415
        return time.monotonic() - began


def test_a_request_in_many_packets_takes_its_time_from_the_others(busy: Service) -> None:
    """Each costs the event loop as much as a small answer: a hundred clients have their share, 100 a second."""
    assert send_bodies(busy, 100, [*[b"x"] * (MAX_PACKETS - 1), b"yy", b"z"]) > 0.5


def test_a_large_request_takes_its_time_from_the_others(busy: Service) -> None:
    """Ten bodies of 60 kB cost as much as 300 small answers."""
    assert send_bodies(busy, 10, [b"y" * 30_000, b"z" * 30_000]) > 1
