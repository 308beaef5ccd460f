"""Each worker keeps to one core.

Its threads take turns with the GIL, so one core is all they can use, and a turn that moves to another core
costs more: on a core of its own, the same worker serves 1.2 to 1.5 times the requests. Hashing a password lets
the GIL go, and uses them all: see users/passwords.py.
"""

import os
import random
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

RETRY = 1.0  # seconds: while workers are replaced, there is one more of them than cores

_taken: list[socket.socket] = []


def settle() -> str:
    """Keep this process to a core that no other worker on the host keeps to; return what was done, in words.

    When there is none, go on trying in the background. Costs a system call for each core, and one for each thread.
    """
    if sys.platform != "linux":
        return "workers are kept to a core on Linux only"
    given = os.sched_getaffinity(0)
    if len(given) == 1:
        return f"core {min(given)} is all this process may use"
    core = _take(given)
    if core is None:
        threading.Thread(target=_wait, args=(given,), name="affinity", daemon=True).start()
        return "every core has its worker already: this one uses them all until one is free"
    return f"this worker keeps to core {core} (WORKER_AFFINITY)"


def _take(given: set[int]) -> int | None:
    # In any order: services in containers of their own cannot see each other's sockets.
    for core in random.sample(sorted(given), len(given)):
        # A name, and no file: the kernel frees it with the process, however that ends.
        mine = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            mine.bind(f"\0users-service/core/{core}")
        except OSError:
            mine.close()
            continue
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # it has ended since
                os.sched_setaffinity(int(thread.name), {core})
        _taken.append(mine)
        return core
    return None


def _wait(given: set[int]) -> None:
    while _take(given) is None:
        threading.Event().wait(RETRY)
