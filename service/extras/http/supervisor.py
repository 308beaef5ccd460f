"""uvicorn's supervisor of several workers: it replaces a worker that dies, and at SIGHUP all of them, one by one."""

import signal
from socket import socket

from uvicorn import Config
from uvicorn.supervisors import Multiprocess


class Supervisor(Multiprocess):
    """Stop at once when told to, and leave no socket that nobody accepts from."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        """Have all workers listen on `sockets`, which are bound."""
        super().__init__(config, sockets)
        for number in (signal.SIGTERM, signal.SIGINT):  # even while workers are replaced
            signal.signal(number, lambda *_: self.should_exit.set())

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that has died or does not answer a ping."""
        for process in self.processes:  # with our copy open, a ping would wait for a worker that was killed
            process.child_conn.close()
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Let every worker finish its requests in progress."""
        for listening in self.sockets:  # otherwise a client that connects now waits in vain
            listening.close()
        super().terminate_all()
