"""uvicorn's supervisor of several workers: it replaces a worker that dies, and at SIGHUP all of them, one by one."""

import signal
import threading
from os import kill
from socket import socket

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess


class Supervisor(Multiprocess):
    """Stop at once when told to, and leave no socket that nobody accepts from."""

    def __init__(self, config: Config, sockets: list[socket], *, drain_delay: float) -> None:
        """Have all workers listen on `sockets`, which are bound, and go on so for `drain_delay` seconds of a stop."""
        super().__init__(config, sockets)
        self._drain_delay = drain_delay
        self._at_once = threading.Event()
        self._was_told = False
        for number in (signal.SIGTERM, signal.SIGINT):  # even while workers are replaced
            signal.signal(number, self._stop)

    def _stop(self, number: int, _: object) -> None:
        """Begin to stop; at the second signal, or at Ctrl-C, wait for no load balancer."""
        if self.should_exit.is_set() or number == signal.SIGINT:
            self._at_once.set()
        self._was_told = True
        self.should_exit.set()

    @property
    def failed_to_start(self) -> bool:
        """Whether a worker could not start. One that is told to stop while it starts has the same exit status."""
        return not self._was_told and any(process.exitcode == STARTUP_FAILURE for process in self.processes)

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that has died or does not answer a ping."""
        for process in self.processes:  # with our copy open, a ping would wait for a worker that was killed
            process.child_conn.close()
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Let every worker say that it drains, and finish its requests in progress after the delay."""
        for process in self.processes:
            if self._drain_delay and process.exitcode is None and process.pid:
                kill(process.pid, signal.SIGUSR1)
        self._at_once.wait(self._drain_delay)
        for listening in self.sockets:  # otherwise a client that connects now waits in vain
            listening.close()
        super().terminate_all()
