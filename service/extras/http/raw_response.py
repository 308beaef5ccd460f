"""Responses that no application makes: their bytes, and what is logged of their requests."""

import re
from http import HTTPStatus

from fastapi import Response

from service.extras.http.framing import REQUEST_LINE
from service.telemetry.record import Record
from service.web.middleware import request_id
from service.web.problems import Problem

REQUEST_ID = re.compile(rb"\r\nx-request-id:[ \t]*([^\r\n]*?)[ \t]*\r\n", re.IGNORECASE)

Headers = list[tuple[bytes, bytes]]


def response_bytes(response: Response, record: Record, headers: Headers) -> bytes:
    """Return `response` to the request of `record`, with more `headers`, as HTTP/1.1 has it."""
    status = HTTPStatus(response.status_code)
    lines = [b"HTTP/1.1 %d %b" % (status, status.phrase.encode())]
    lines += [b"%b: %b" % header for header in [*headers, *response.raw_headers]]
    lines += [b"x-request-id: %b" % record.request_id.encode(), b"", b""]
    return b"\r\n".join(lines) + (b"" if record.method == "HEAD" else bytes(response.body))


def rejected_record(problem: Problem, head: bytes) -> Record:
    """Return the record of a request that cannot be parsed, with what can be found in its head."""
    found, line = REQUEST_ID.search(head), REQUEST_LINE.match(head)
    method, path = (part.decode() for part in line.groups()) if line else ("-", "-")
    record = Record(request_id(found[1] if found else b""), method, path.partition("?")[0])
    record.status, record.code = problem.status, problem.code
    return record
