"""One line for each event, with the id of the request it belongs to: JSON for machines, or text for eyes."""

import asyncio
import json
import logging
import os
import re
import sys
import threading
import time
from collections import Counter
from http import HTTPStatus
from typing import Any

from service.telemetry import metrics
from service.telemetry.log_writer import LogWriter
from service.telemetry.record import RECORD, Record

# PostgreSQL quotes the whole row there, and with it somebody's email and the hash of a password.
DETAIL = re.compile(r"\nDETAIL:.*?(?=\n\n|\Z)", re.DOTALL)

# What psycopg's pool tells of every connection that is lost or cannot be made. In an outage there are thousands, and
# the service tells its beginning and its end instead: see database/pool.py.
REPEATED = ("error connecting in", "reconnection attempt in", "discarding ")

PLAIN = re.compile(r"[A-Za-z0-9/._~%:@!$&'()*+,;=-]*")

COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "41"}

POLLED = "/pool"  # twice a second by its page, which tells of nothing but itself

# Lines a second, in each worker, of requests that took no thread: refusals, probes, paths that do not exist. They are
# cheap to answer, so a flood of them would fill a disk; the rest of them is counted in one line a second.
CHEAP = 100

LONGEST_PATH = 256  # characters in a line; a request's head may be 64 KiB
LONGEST_METHOD = 16  # likewise; httptools knows none that is longer, but other servers take any word


class _Text(logging.Formatter):
    """2026-11-25 02:10:00,123 INFO    [request id] words."""

    DATE, POINT, ZONE, CLOCK = "%Y-%m-%d %H:%M:%S", ",", "", staticmethod(time.localtime)

    _second = -1
    _words = ""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.at(record.created)} {self.level(record.levelname)} [{RECORD.get().request_id}]"
        text = f"{text} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text

    def request(self, record: Record) -> str:
        times = ((record.queued_to_hash, "for a core"), (record.queued, "queued"), (record.held, "held"))
        target = f"{_cut(record.method, LONGEST_METHOD)} {_cut(record.path, LONGEST_PATH)}"
        more = ", ".join(f"{seconds * 1000:.1f} {what}" for seconds, what in times if seconds is not None)
        return (
            f"{self.at(time.time())} {self.level('INFO')} [{record.request_id}] {target}"
            f" {record.status} {record.duration * 1000:.1f} ms"
            f"{more and f' ({more})'}{record.code and f' {record.code}'}"
        )

    def at(self, moment: float) -> str:
        second = int(moment)
        if second != self._second:  # once a second: it is a third of the cost of a line
            self._second, self._words = second, time.strftime(self.DATE, self.CLOCK(second))
        return f"{self._words}{self.POINT}{int(moment * 1000) % 1000:03d}{self.ZONE}"

    def level(self, name: str) -> str:
        return f"\x1b[{COLOURS.get(name, '0')}m{name:7}\x1b[0m" if self._coloured else f"{name:7}"

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - the library's
        return DETAIL.sub("", super().formatException(ei))


class _Json(_Text):
    """The same as one object a line; times are in UTC and in seconds."""

    DATE, POINT, ZONE, CLOCK = "%Y-%m-%dT%H:%M:%S", ".", "Z", staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(coloured=False)

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "time": self.at(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": RECORD.get().request_id,
            "message": record.getMessage(),
        }
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members)

    def request(self, record: Record) -> str:
        # Put together by hand, as json.dumps takes 6 µs. Only a path may hold what must be escaped, and it seldom does.
        path = _cut(record.path, LONGEST_PATH)
        path = path if PLAIN.fullmatch(path) else json.dumps(path)[1:-1]
        line = (
            f'{{"time":"{self.at(time.time())}","level":"info","logger":"service.request"'
            f',"request_id":"{record.request_id}","method":"{_cut(record.method, LONGEST_METHOD)}","path":"{path}"'
            f',"route":"{record.route}","status":{record.status},"seconds":{record.duration:.6f}'
        )
        for name, seconds in (
            ("queued_to_hash", record.queued_to_hash),
            ("queued", record.queued),
            ("held", record.held),
        ):
            if seconds is not None:
                line += f',"{name}":{seconds:.6f}'
        return f'{line},"code":"{record.code}"}}' if record.code else line + "}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class _Handler(logging.Handler):
    """Hands lines to the writer, without the library's lock: a finalizer may log while its thread is in the writer."""

    def __init__(self, form: _Text) -> None:
        super().__init__()
        self.setFormatter(form)

    def createLock(self) -> None:  # noqa: N802 - the library's
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record)
        except Exception:  # noqa: BLE001 - as the library's own handlers do
            self.handleError(record)
        else:
            _WRITER.write(line)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's
        _WRITER.write(_line("ERROR", f"a message of {record.name} cannot be formatted: {record.msg!r}"))

    def flush(self) -> None:
        """Called by the library when the process ends."""
        _WRITER.flush()


class _Quota:
    """The first CHEAP lines of each second; then one line that counts the others by what they were answered."""

    def __init__(self) -> None:
        self._left = CHEAP
        self._ends = 0.0
        self._others: Counter[str] = Counter()

    def takes(self, record: Record) -> bool:
        """Tell whether a request has its own line. To be called on the event loop."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        if now >= self._ends:
            self._left, self._ends = CHEAP, now + 1
        if self._left:
            self._left -= 1
            return True
        if not self._others:
            loop.call_at(self._ends, self.summarise)
        self._others[record.code or str(record.status or 499)] += 1
        return False

    def summarise(self) -> None:
        if self._others:
            counts = ", ".join(f"{answer} {count:,}" for answer, count in self._others.most_common())
            requests.info("%s more requests in the same second: %s", f"{self._others.total():,}", counts)
            self._others.clear()


def _gap(dropped: int) -> str:
    return _line("WARNING", f"{dropped:,} lines were dropped here, as whoever reads the log did not take them")


def _line(level: str, text: str) -> str:
    record = {"name": __name__, "levelname": level, "msg": text, "exc_info": sys.exc_info()[1] and sys.exc_info()}
    return _FORM.format(logging.makeLogRecord(record))


logger = logging.getLogger("service")
requests = logging.getLogger("service.request")

_WRITER = LogWriter(_gap, lambda dropped: metrics.LOG_LINES_DROPPED.add(number=dropped))
_FORM: _Text = _Json()
_QUOTA = _Quota()


def tell(record: Record) -> None:
    """Tell of a request that has ended. To be called on the event loop."""
    _WRITER.count_drops()
    if record.path == POLLED and record.status == HTTPStatus.OK:
        return
    if record.queued is not None or _QUOTA.takes(record):
        _WRITER.write(_FORM.request(record))


def finish() -> None:
    """Write what is in the buffer, for a second at the most; and each line from here on before its logger returns.

    For who ends a worker: uvicorn's last act may be to kill its process with the signal that it was sent.
    """
    _QUOTA.summarise()
    _WRITER.flush()


def configure(form: str) -> None:
    """Send the records of the service, uvicorn and psycopg to standard output, as "json" or "text"."""
    global _FORM  # noqa: PLW0603 - as there is one standard output
    _FORM = _Json() if form == "json" else _Text(coloured=_is_terminal() and "NO_COLOR" not in os.environ)
    # What no line shows is not found out, as the library's documentation has it: 5.5 µs a line in place of 7.9.
    logging._srcfile = None  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[_Handler(_FORM)], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.getLogger("uvicorn.access").disabled = True  # web/middleware.py tells of requests
    logging.getLogger("psycopg").setLevel(logging.WARNING)  # the pool tells every checkout at INFO
    logging.getLogger("psycopg.pool").addFilter(_not_repeated)
    # What Python itself writes to standard error would wait for its reader.
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda *exc: logger.critical("unhandled", exc_info=exc)
    sys.unraisablehook = lambda it: logger.error("unhandled in %r", it.object, exc_info=it.exc_value)
    threading.excepthook = lambda it: logger.error("unhandled in %s", it.thread, exc_info=it.exc_value)


def _is_terminal() -> bool:
    return sys.stdout is not None and sys.stdout.isatty()  # it is None when it is closed


def _not_repeated(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(REPEATED)
