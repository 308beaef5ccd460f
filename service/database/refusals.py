"""Why a connection cannot be made: by SQLSTATE where there is one, then by how far it came, last by words.

psycopg's error of a failed connect has only a text, in the server's language. So a second attempt is traced, and its
trace has the SQLSTATE. What libpq itself says is always English, as Python leaves LC_MESSAGES at C.
"""

import re
import time
from dataclasses import dataclass
from functools import lru_cache

from psycopg import Error, errors

from service.database import libpq

SQLSTATE = re.compile(r'\tB\t\d+\tErrorResponse\t S "[^"]*"(?: V "[^"]*")? C "(\w{5})"')
STARTUP = "\tStartupMessage\t"

QUOTED = re.compile(r"""("|(?<!\w)').*?\1""")  # names, such as that of a host

# https://www.postgresql.org/docs/current/errcodes-appendix.html
PERMANENT = ("28", "3D", "42", "22")  # credentials, an unknown database, rights, values of parameters
NOT_ABOUT_OPTIONS = ("28", "3D", "42501", "53", "55", "57")  # the above, the server's limits and its state
TOO_MANY_CONNECTIONS = "53300"

# The words of libpq, and of poolers, whose errors mostly have the SQLSTATE 08P01.
NO_SQLSTATE = ("", "08P01")
PERMANENT_WORDS = re.compile(
    r"invalid|bad value|certificate|private key|no password supplied|does not support SSL|weak sslmode"
    r"|authentication method|authentication failed|no such (user|database)"
    r"|(database|role|user) +(does not exist|not found)"
)
LIMIT_WORDS = re.compile(r"too many (connections|clients)|connection slots|no more connections|max_?client")


@dataclass(frozen=True)
class Refusal:
    """What is known of an attempt to connect that failed."""

    text: str
    sqlstate: str = ""  # empty when the server gave none
    started: bool = False  # whether the server was reached, and received the options of the connection
    is_timeout: bool = False

    @property
    def is_permanent(self) -> bool:
        """Whether a retry is useless until somebody changes the settings or the server."""
        words = QUOTED.sub("", self.text)
        return self.sqlstate.startswith(PERMANENT) or (
            self.sqlstate in NO_SQLSTATE and PERMANENT_WORDS.search(words) is not None
        )

    @property
    def is_limit(self) -> bool:
        """Whether the server is up and has no connection left for us."""
        return self.sqlstate == TOO_MANY_CONNECTIONS or (
            self.sqlstate in NO_SQLSTATE and LIMIT_WORDS.search(self.text) is not None
        )

    @property
    def may_be_about_options(self) -> bool:
        """Whether an attempt without options may succeed."""
        return self.started and not self.sqlstate.startswith(NOT_ABOUT_OPTIONS)


class ConnectFailed(Exception):
    """No connection can be made; `refusal` says why."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.text)
        self.refusal = refusal


class ServerUnfit(Exception):
    """The server cannot serve this configuration; the text gives the reason and the remedy."""


def one_line(exc: Exception) -> str:
    """Return the message of an error without line breaks."""
    return " ".join(str(exc).split())


def explain(conninfo: str, exc: Error) -> Refusal:
    """Return what it means that connecting failed with `exc`.

    Where `exc` says too little, takes another attempt: once a minute for the same text, as psycopg leaks 4 KiB with
    each trace.
    """
    text = one_line(exc)
    if exc.sqlstate:  # of the first statement
        return Refusal(text, exc.sqlstate, started=True)
    if isinstance(exc, errors.ConnectionTimeout):
        return Refusal(text, started=True, is_timeout=True)
    return _trace(conninfo, text, time.monotonic() // 60)


@lru_cache(maxsize=64)
def _trace(conninfo: str, text: str, _minute: float) -> Refusal:
    try:
        trace = libpq.trace(conninfo)
    except (Error, OSError, AttributeError):  # no second attempt can be made, or not traced
        return Refusal(text, started=True)
    states = SQLSTATE.findall(trace)
    return Refusal(text, states[-1] if states else "", STARTUP in trace)
