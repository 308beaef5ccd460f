"""A nameserver for one name, which can forget it, or say nothing at all."""

import socket
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset

from tests.support.namespaces import run

NAME = "database.test"
PORT = 53


class Nameserver:
    """Answers every program of the run, which asks as it would ask any nameserver: /etc/resolv.conf leads here."""

    def __init__(self, folder: Path) -> None:
        """Write the run's resolv.conf into `folder`."""
        self.address = ""  # what the name resolves to; empty: there is no such name
        self.silent = False  # read the questions and answer none
        self.asked = 0
        self._resolv_conf = folder / "resolv.conf"
        self._resolv_conf.write_text("nameserver 127.0.0.1\n")
        self._resolv_conf.chmod(0o644)

    def __enter__(self) -> Self:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", PORT))
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        self._covered = Path("/etc/resolv.conf").resolve()
        if not self._covered.exists():  # it leads into /run, which is empty here
            self._covered.parent.mkdir(parents=True, exist_ok=True)
            self._covered.touch()
        run("mount", "--bind", str(self._resolv_conf), str(self._covered))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        run("umount", str(self._covered))
        self._socket.sendto(b"", self._socket.getsockname())  # the last one
        self._thread.join()
        self._socket.close()

    def _run(self) -> None:
        while question := self._receive():
            data, peer = question
            self.asked += 1
            if not self.silent:
                self._socket.sendto(self._reply(data), peer)

    def _receive(self) -> tuple[bytes, tuple[str, int]] | None:
        try:
            data, peer = self._socket.recvfrom(4096)
        except OSError:
            return None
        return (data, peer) if data else None

    def _reply(self, data: bytes) -> bytes:
        query = dns.message.from_wire(data)
        asked = query.question[0]
        reply = dns.message.make_response(query)
        if asked.name.to_text(omit_final_dot=True) != NAME or not self.address:
            reply.set_rcode(dns.rcode.NXDOMAIN)
        elif asked.rdtype == dns.rdatatype.A:
            reply.answer.append(dns.rrset.from_text(asked.name, 0, "IN", "A", self.address))
        return reply.to_wire()
