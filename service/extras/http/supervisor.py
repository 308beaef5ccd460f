"""Several workers: uvicorn's supervisor, which replaces one that dies, and all of them one by one at SIGHUP."""

import signal
from socket import socket

from uvicorn import Config
from uvicorn.supervisors import Multiprocess


class Supervisor(Multiprocess):
    """Has all workers listen on the same sockets, and begins to stop at once."""

    def __init__(self, config: Config, sockets: list[socket]) -> None:
        """Take `sockets`, which are bound."""
        super().__init__(config, sockets)
        for number in (signal.SIGTERM, signal.SIGINT):  # not after the replacement of all workers that is under way
            signal.signal(number, lambda *_: self.should_exit.set())

    def keep_subprocess_alive(self) -> None:
        """Replace each worker that has died, or that gives no sign of life."""
        for process in self.processes:  # with our copy open, one that is killed during a ping would be waited for
            process.child_conn.close()
        super().keep_subprocess_alive()

    def terminate_all(self) -> None:
        """Have every worker finish what is in progress."""
        for listening in self.sockets:  # or a client that connects now would wait for nobody
            listening.close()
        super().terminate_all()
