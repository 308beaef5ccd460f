"""The sockets that the workers of one service accept clients on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from operator import itemgetter

from service.extras.http import clients
from service.settings import Settings, SettingsError

# Clients that a worker accepts in one turn of its event loop: libuv accepts one from each socket, and these are
# copies of one. Half of 600 new clients a second waited for 13 ms with 16 of them, for 0.7 s with 4.
ACCEPTS = 16

# With several workers: with 8 and more, one of two workers took up to 15 of 16 clients that came at once.
ACCEPTS_SHARED = 4


def bind(settings: Settings) -> socket.socket:
    """Return a socket that is bound to HOST and PORT. Raises SettingsError when the address cannot be had."""
    with _translate_errors(settings):
        found = socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found, key=itemgetter(0))  # IPv4 when there are both, as for localhost
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        clients.limit_buffers(bound)
        if family == socket.AF_INET6:  # without this, :: takes IPv4 clients too, with other addresses than their own
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
        return bound


def listen(bound: socket.socket, backlog: int, settings: Settings) -> list[socket.socket]:
    """Listen on `bound`, and return it and the copies of it to accept from. Raises SettingsError."""
    with _translate_errors(settings):
        bound.listen(backlog)  # clients that connect before the workers have started wait for them
    accepts = ACCEPTS if settings.workers == 1 else ACCEPTS_SHARED
    return [bound, *(bound.dup() for _ in range(1, accepts))]


def url(bound: socket.socket) -> str:
    """Return the URL that the service is reached at."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


@contextmanager
def _translate_errors(settings: Settings) -> Iterator[None]:
    try:
        yield
    except (OSError, UnicodeError) as exc:
        raise SettingsError(
            f"HOST={settings.host} PORT={settings.port} cannot be listened on: {getattr(exc, 'strerror', exc)}"
        ) from exc
