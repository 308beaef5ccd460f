"""Pin each worker to one core.

Its threads take turns with the GIL, so they cannot use more than one core, and moving between cores is expensive: a
pinned worker serves 1.2 to 1.5 times the requests. Hashing releases the GIL and uses all cores: users/passwords.py.
"""

import os
import random
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

RETRY_INTERVAL = 1.0  # seconds; while workers are replaced, there may be one more than cores

_locks: list[socket.socket] = []  # open for as long as the process lives


def pin() -> str:
    """Pin this process to a core that no other worker on the host has; return the outcome as a line for the log.

    When no core is free, retry in the background. Costs a system call for each core, and one for each thread.
    """
    if sys.platform != "linux":
        return "workers are kept to a core on Linux only"
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        return f"core {min(allowed)} is all this process may use"
    core = _pin(allowed)
    if core is None:
        threading.Thread(target=_retry, args=(allowed,), name="affinity", daemon=True).start()
        return "every core has its worker already: this worker uses all cores until one is free"
    return f"this worker keeps to core {core} (WORKER_AFFINITY)"


def _pin(allowed: set[int]) -> int | None:
    # In random order, as services in separate containers do not see each other's sockets.
    for core in random.sample(sorted(allowed), len(allowed)):
        # An abstract name is the lock: the kernel releases it when the process ends.
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0users-service/core/{core}")
        except OSError:
            lock.close()
            continue
        for thread in Path("/proc/self/task").iterdir():
            with suppress(ProcessLookupError):  # the thread has ended
                os.sched_setaffinity(int(thread.name), {core})
        _locks.append(lock)
        return core
    return None


def _retry(allowed: set[int]) -> None:
    while _pin(allowed) is None:
        threading.Event().wait(RETRY_INTERVAL)
