"""The API under stock uvicorn, without service/extras/http/: no upgrade of uvicorn can trap the service.

Other files of the API run so too: `make test ARGS="--server=uvicorn tests/api/test_http.py"`. Only tests of what is not
HTTP need the protocol of service/extras/http/.
"""

from collections.abc import Sequence

import httpx
import pytest

from tests.api.test_errors import *  # noqa: F403 - its tests, with the service below
from tests.api.test_users import *  # noqa: F403
from tests.conftest import STOCK_UVICORN
from tests.support.process import Service
from tests.support.raw_http import Answer, connect
from tests.support.users import create


@pytest.fixture(scope="module")
def argv() -> Sequence[str]:
    return STOCK_UVICORN


def test_the_body_of_an_upgrade_is_not_taken_for_a_request(service: Service, client: httpx.Client) -> None:
    """Uvicorn's parser takes what follows the head for another protocol, and the next packet for a request."""
    user_id = create(client)["id"]
    body = f"DELETE /users/{user_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    head = (
        f"POST /users HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with connect(service.url) as peer:
        peer.sendall(head.encode())
        assert client.get("/livez").status_code == 200
        peer.sendall(body)
        assert Answer(peer.recv(65536)).status_code == 400
    assert client.get(f"/users/{user_id}").status_code == 200
