"""The sockets that the workers of one service accept clients on."""

import errno
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from service.extras.http import clients
from service.settings import Settings, SettingsError

Address = tuple[Any, ...]  # as a socket's bind() takes it

# Clients that a worker accepts in one turn of its event loop: libuv accepts one from each socket, and these are
# copies of one. Half of 600 new clients a second waited for 13 ms with 16 of them, for 0.7 s with 4.
ACCEPTS = 16

# With several workers: with 8 and more, one of two workers took up to 15 of 16 clients that came at once.
ACCEPTS_SHARED = 4

# What these names mean, whatever the machine's resolver says.
NAMES = {"*": ("::",), "localhost": ("127.0.0.1", "::1")}

NO_SUCH_FAMILY = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}  # a machine without IPv6


@contextmanager
def bind(settings: Settings) -> Iterator[list[socket.socket]]:
    """Yield a socket for each address of HOST, all bound to one port; close them when the block ends.

    Leave out an address of a family that the machine lacks. Raises SettingsError when an address is in use, or none can
    be had.
    """
    with ExitStack() as stack:
        with _translate_errors(settings):
            host = settings.host.removeprefix("[").removesuffix("]").lower()
            found = {
                (family, address)
                for name in NAMES.get(host, (host,))
                for family, *_, address in socket.getaddrinfo(name, settings.port, type=socket.SOCK_STREAM)
            }
            # One socket for both families would show IPv4 clients with IPv6 addresses.
            if any(address[0] == "::" for _, address in found):
                found.add((socket.AF_INET, ("0.0.0.0", settings.port)))  # noqa: S104
            bound = _bind_all(sorted(found), stack)  # IPv4 first: the log shows its URL first
        yield bound


def _bind_all(found: list[tuple[socket.AddressFamily, Address]], stack: ExitStack) -> list[socket.socket]:
    bound: list[socket.socket] = []
    lacking: OSError | None = None
    for family, (host, port, *scope) in found:
        chosen = bound[0].getsockname()[1] if bound else port  # PORT=0 chooses one for all
        try:
            bound.append(stack.enter_context(_bind_one(family, (host, chosen, *scope))))
        except OSError as exc:
            if exc.errno not in NO_SUCH_FAMILY:
                raise
            lacking = exc
    if lacking and not bound:
        raise lacking
    return bound


def _bind_one(family: socket.AddressFamily, address: Address) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        clients.limit_buffers(bound)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(address)
    except OSError:
        bound.close()
        raise
    return bound


def listen(bound: Sequence[socket.socket], backlog: int, settings: Settings) -> list[socket.socket]:
    """Listen on each of `bound`, and return them and the copies of them to accept from. Raises SettingsError."""
    accepts = ACCEPTS if settings.workers == 1 else ACCEPTS_SHARED
    with _translate_errors(settings):
        for each in bound:
            each.listen(backlog)  # clients that connect before the workers have started wait for them
    return [copy for each in bound for copy in (each, *(each.dup() for _ in range(1, accepts)))]


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
