"""One line for each event, with the id of its request: JSON for programs, or text for people."""

import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.telemetry.record import RECORD, Record

# PostgreSQL's DETAIL quotes the whole row, its CONTEXT a parameter: an email, or a password's hash.
VALUES = re.compile(r"\n(?:DETAIL|CONTEXT):.*?(?=\n\n|\Z)", re.DOTALL)

# psycopg_pool logs each connection that it loses or cannot open: thousands in an outage. database/pool.py logs the
# beginning and the end of the outage instead.
REPEATED = ("error connecting in", "reconnection attempt in", "discarding ")

PLAIN = re.compile(r"[A-Za-z0-9/._~%:@!$&'()*+,;=-]*")

COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31", "CRITICAL": "41"}

LONGEST_PATH = 256  # characters in a line; the head of a request may be 64 KiB
LONGEST_METHOD = 16  # characters; httptools knows no longer method, but other servers accept any word


class _TextFormatter(logging.Formatter):
    """2026-11-25 02:10:00,123 INFO    [request id] message."""

    DATE, POINT, ZONE, CLOCK = "%Y-%m-%d %H:%M:%S", ",", "", staticmethod(time.localtime)

    _second = -1
    _date = ""

    def __init__(self, *, coloured: bool) -> None:
        super().__init__()
        self._coloured = coloured

    def format(self, record: logging.LogRecord) -> str:
        text = f"{self.timestamp(record.created)} {self.level(record.levelname)} [{RECORD.get().request_id}]"
        text = f"{text} {record.getMessage()}"
        return f"{text}\n{self.formatException(record.exc_info)}" if record.exc_info else text

    def request(self, record: Record) -> str:
        times = ((record.queued_to_hash, "for a core"), (record.queued, "queued"), (record.held, "held"))
        target = f"{_cut(record.method, LONGEST_METHOD)} {_cut(record.path, LONGEST_PATH)}"
        more = ", ".join(f"{seconds * 1000:.1f} {what}" for seconds, what in times if seconds is not None)
        return (
            f"{self.timestamp(time.time())} {self.level('INFO')} [{record.request_id}] {target}"
            f" {record.status} {record.duration * 1000:.1f} ms{more and f' ({more})'}"
            f"{record.caller and f' by {record.caller}'}{record.subject and f' on {record.subject}'}"
            f"{' replayed' if record.replayed else ''}{record.code and f' {record.code}'}"
        )

    def timestamp(self, moment: float) -> str:
        second = int(moment)
        if second != self._second:  # format the date once a second: it is a third of the cost of a line
            self._second, self._date = second, time.strftime(self.DATE, self.CLOCK(second))
        return f"{self._date}{self.POINT}{int(moment * 1000) % 1000:03d}{self.ZONE}"

    def level(self, name: str) -> str:
        return f"\x1b[{COLOURS.get(name, '0')}m{name:7}\x1b[0m" if self._coloured else f"{name:7}"

    def formatException(self, ei: Any) -> str:  # noqa: ANN401, N802 - logging's name
        return VALUES.sub("", super().formatException(ei))


class _JsonFormatter(_TextFormatter):
    """The same as one JSON object; times are in UTC, durations in seconds."""

    DATE, POINT, ZONE, CLOCK = "%Y-%m-%dT%H:%M:%S", ".", "Z", staticmethod(time.gmtime)

    def __init__(self) -> None:
        super().__init__(coloured=False)

    def format(self, record: logging.LogRecord) -> str:
        members = {
            "time": self.timestamp(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": RECORD.get().request_id,
            "message": record.getMessage(),
        }
        if record.exc_info:
            members["exception"] = self.formatException(record.exc_info)
        return json.dumps(members)

    def request(self, record: Record) -> str:
        # Without json.dumps, which takes 6 µs: only the path can hold a character that must be escaped.
        path = _cut(record.path, LONGEST_PATH)
        path = path if PLAIN.fullmatch(path) else json.dumps(path)[1:-1]
        line = (
            f'{{"time":"{self.timestamp(time.time())}","level":"info","logger":"service.request"'
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
        if record.caller:
            line += f',"caller":"{record.caller}"'
        if record.subject:
            line += f',"subject":"{record.subject}"'
        if record.replayed:
            line += ',"replayed":true'
        return f'{line},"code":"{record.code}"}}' if record.code else line + "}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def print_line(line: str) -> None:
    """Write a line to standard output, and wait for its reader."""
    with suppress(OSError):  # the reader has ended, or the disk is full
        print(f"{line}\n", end="", flush=True)  # noqa: T201 - one write, so that lines of two threads do not mix


class _Handler(logging.Handler):
    """Format records and requests, and pass each line to `write`.

    Takes no lock, unlike logging's own handlers: a finalizer may log while its thread is inside `write`.
    """

    def __init__(
        self, formatter: _TextFormatter, write: Callable[[str], object], is_logged: Callable[[Record], bool]
    ) -> None:
        super().__init__()
        self.text = formatter
        self.write = write
        self.is_logged = is_logged

    def createLock(self) -> None:  # noqa: N802 - logging's name
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.text.format(record)
        except Exception:  # noqa: BLE001 - as logging's own handlers do
            line = format_line("ERROR", f"a message of {record.name} cannot be formatted: {record.msg!r}")
        self.write(line)


logger = logging.getLogger("service")

_handler = _Handler(_JsonFormatter(), print_line, lambda _record: True)


def log_request(record: Record) -> None:
    """Write the line of a request that has ended. Call it on the event loop."""
    if _handler.is_logged(record):
        _handler.write(_handler.text.request(record))


def format_line(level: str, text: str) -> str:
    """Return a line of the log, with the exception that is handled just now, if any."""
    record = {"name": __name__, "levelname": level, "msg": text, "exc_info": sys.exc_info()[1] and sys.exc_info()}
    return _handler.text.format(logging.makeLogRecord(record))


def configure(
    form: str,
    write: Callable[[str], object] = print_line,
    is_logged: Callable[[Record], bool] = lambda _record: True,
) -> None:
    """Pass the log of the service, uvicorn and psycopg to `write`, as "json" or "text", one line a call.

    A request has a line only when `is_logged` returns true for it.
    """
    global _handler  # noqa: PLW0603 - a process has one log
    coloured = sys.stdout is not None and sys.stdout.isatty() and "NO_COLOR" not in os.environ
    _handler = _Handler(_JsonFormatter() if form == "json" else _TextFormatter(coloured=coloured), write, is_logged)
    # Do not look up what no line shows (see logging's documentation on optimization): 5.5 µs a line instead of 7.9.
    logging._srcfile = None  # noqa: SLF001
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.basicConfig(level=logging.INFO, handlers=[_handler], force=True)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.asgi"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # web/middleware.py logs requests. Without a handler, uvicorn does not even compose its line, which costs 3 %.
    logging.getLogger("uvicorn.access").handlers.clear()
    logging.getLogger("uvicorn.access").propagate = False
    logging.getLogger("psycopg").setLevel(logging.WARNING)  # the pool logs every checkout at INFO
    logging.getLogger("psycopg.pool").addFilter(lambda record: not str(record.msg).startswith(REPEATED))
    # Python would write these to standard error, and wait for its reader.
    logging.captureWarnings(capture=True)
    sys.excepthook = lambda *exc: logger.critical("unhandled", exc_info=exc)
    sys.unraisablehook = lambda it: logger.error("unhandled in %r", it.object, exc_info=it.exc_value)
    threading.excepthook = lambda it: logger.error("unhandled in %s", it.thread, exc_info=it.exc_value)
