"""systemd: a unit that runs the service with few rights, and the message that it is ready.

See systemd.exec(5), systemd.resource-control(5) and sd_notify(3).
"""

import math
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path

from service.settings import Settings

CHECKOUT = Path(__file__).parents[2]
STATE = "users-service"  # below /var/lib

WORKER_MEMORY = 512  # MiB: what a worker needs at the most, whatever clients do
SUPERVISOR_MEMORY = 256  # MiB: of its supervisor, and what the kernel counts besides
STOP_MARGIN = 5  # seconds from the end of the graceful shutdown until systemd kills what is left


def unit(settings: Settings) -> str:
    """Return a unit for `settings`: its limits follow from WORKERS, DRAIN_DELAY and GRACEFUL_SHUTDOWN_TIMEOUT."""
    return (
        (Path(__file__).parent / "users.service")
        .read_text(encoding="utf-8")
        .format(
            checkout=CHECKOUT,
            python=sys.executable,
            state=STATE,
            keys=f"/var/lib/{STATE}/api-keys",
            memory=SUPERVISOR_MEMORY + WORKER_MEMORY * settings.workers,
            stop=math.ceil(settings.drain_delay + settings.graceful_shutdown_timeout) + STOP_MARGIN,
            # A single worker ends at SIGHUP.
            reload="ExecReload=/bin/kill -HUP $MAINPID\n" if settings.workers > 1 else "",
        )
    )


def notify(state: str) -> None:
    """Send `state`, such as READY=1, to systemd when it has started the service. Ignore an address of nobody."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as manager, suppress(OSError):
            manager.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
