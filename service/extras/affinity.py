"""Pin each worker to one core, and move it when others use that core.

Its threads take turns with the GIL, so they cannot use more than one core, and moving between cores is expensive: a
pinned worker serves 1.2 to 1.5 times the requests. Hashing releases the GIL and uses all cores: users/passwords.py.
"""

import logging
import os
import random
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

INTERVAL = 1.0  # seconds between two looks at the load of the cores, on average
GAIN = 0.25  # of a core: moving for less is not worth it

Times = dict[int, tuple[int, int]]  # of each core: how long it was busy, and how long in all


def pin() -> str:
    """Pin this process to a core, if possible one that no other worker has; return the outcome as a line for the log.

    Once a second, a background thread looks for a better core: 0.2 ms each time.
    """
    if sys.platform != "linux":
        return "workers are kept to a core on Linux only"
    allowed = os.sched_getaffinity(0)
    if len(allowed) == 1:
        return f"core {min(allowed)} is all this process may use"
    pinned = PinnedProcess(allowed)
    threading.Thread(target=pinned.follow_load, name="affinity", daemon=True).start()
    shared = ", which it shares: every core has its worker already" if pinned.shares else ""
    return f"this worker keeps to core {pinned.core} (WORKER_AFFINITY){shared}"


class PinnedProcess:
    """This process, pinned to `core`."""

    def __init__(self, allowed: set[int]) -> None:
        self._allowed = allowed
        self._lock: socket.socket | None = None
        cores = random.sample(sorted(allowed), len(allowed))  # services in separate containers see no locks
        self.core = next(filter(self._claim, cores), cores[0])
        _pin_threads(self.core)

    @property
    def shares(self) -> bool:
        """Whether another worker has this core, too."""
        return self._lock is None

    def follow_load(self) -> None:
        """Move whenever there is a better core."""
        before, used_before = _core_times(), time.process_time()
        while True:
            time.sleep(INTERVAL * random.uniform(0.5, 1.5))  # noqa: S311 - so that two on one core do not both move
            now, used_now = _core_times(), time.process_time()
            load = {core: _load(before[core], now[core]) for core in self._allowed & before.keys() & now.keys()}
            if self.core not in load:  # it is hidden from us, or was taken offline
                continue
            own = (used_now - used_before) * os.sysconf("SC_CLK_TCK") / max(1, now[self.core][1] - before[self.core][1])
            if (core := self._better_core(load, others=load[self.core] - own)) is not None:
                logger.info("this worker moves from core %d to core %d", self.core, core)
                self.core = core
                _pin_threads(core)
            before, used_before = now, used_now

    def _better_core(self, load: dict[int, float], others: float) -> int | None:
        """Return a core that has no worker, if this one shares its own, or one that is less busy than with `others`."""
        for core in sorted(load.keys() - {self.core}, key=load.__getitem__):
            is_quieter = load[core] + GAIN < others
            if (is_quieter or self.shares) and (self._claim(core) or (is_quieter and self.shares)):
                return core
        return None

    def _claim(self, core: int) -> bool:
        """Have `core` in place of the one before, unless another worker has it; the kernel gives it up for us."""
        lock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lock.bind(f"\0users-service/core/{core}")
        except OSError:
            lock.close()
            return False
        if self._lock:
            self._lock.close()
        self._lock = lock
        return True


def _pin_threads(core: int) -> None:
    for thread in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # the thread has ended, or the host took the core from us
            os.sched_setaffinity(int(thread.name), {core})


def _core_times() -> Times:
    """Return what /proc/stat says of each core, in ticks: proc_stat(5)."""
    times = {}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name.startswith("cpu") and name != "cpu":
            user, nice, system, idle, iowait, irq, softirq, steal = map(int, fields[:8])
            busy = user + nice + system + irq + softirq + steal
            times[int(name.removeprefix("cpu"))] = busy, busy + idle + iowait
    return times


def _load(before: tuple[int, int], now: tuple[int, int]) -> float:
    """Return how much of the time between two looks a core was busy, from 0 to 1."""
    return (now[0] - before[0]) / max(1, now[1] - before[1])
