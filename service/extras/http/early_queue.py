"""When no thread is free, reads wait as raw bytes, or are refused before they are parsed.

Parsed, each with a task, those that wait leave the processor's caches before their turn comes: with 512 connections a
request cost 1.31 times what it does with 64; unparsed, 1.06 times. A refusal costs 100 µs of a core here, and 400 in
the application.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

import httptools
from starlette.routing import BaseRoute

from service.extras.http.raw_response import Headers, response_bytes
from service.telemetry.record import Record
from service.web.access import Access
from service.web.admission import Admission, Overloaded
from service.web.middleware import finish_request, request_id
from service.web.problems import PROBLEMS, problem_response
from service.web.root_path import strip_root_path
from service.web.routing import EndpointRoute

HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+,;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?")  # RFC 9110, 7.2


class EarlyQueue:
    """The queue before the threads, for requests of which only the head's bytes are known."""

    def __init__(
        self, admission: Admission, access: Access, routes: Iterable[BaseRoute], root_path: str, *, traced: bool
    ) -> None:
        """Queue the reads of those `routes` that run on a thread, and that `access` allows."""
        self.admission = admission
        self._access = access
        self._routes = [
            route for route in routes if isinstance(route, EndpointRoute) and "GET" in (route.methods or ())
        ]
        paths = {re.escape(route.path_format.partition("/{")[0].encode()) for route in self._routes}
        root, path = re.escape(root_path.encode()), b"|".join(paths) or b"(?!)"
        self._beginning = re.compile(rb"(?:GET|HEAD) (?:%s)?(?:%s)[/? ]" % (root, path))
        self._root_path = root_path
        self._response = problem_response(PROBLEMS[Overloaded])
        self._traced = traced

    def matches(self, head: bytes) -> bool:
        """Return whether this is the head of such a read. One without a valid key takes no place in the queue."""
        return self._beginning.match(head) is not None and self._access.may_wait(head)

    def refuse(self, head: bytes, reason: str, received_at: float, headers: Headers) -> bytes:
        """Return the response that refuses a read, or nothing when the application must make it.

        That is for a web page of another origin, the last request on its connection, one with a body or malformed.
        """
        request = _Request()
        parser = httptools.HttpRequestParser(request)
        try:
            parser.feed_data(head)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            return b""
        path = request.url.partition(b"?")[0].decode("ascii", "replace")
        below = strip_root_path(path, self._root_path)
        route = next((route.path_format for route in self._routes if route.path_regex.match(below)), "")
        if not route or not request.complete or request.needs_full_parse or request.hosts != 1:
            return b""
        if self._traced or parser.get_http_version() != "1.1":
            return b""
        record = Record(request_id(request.id), parser.get_method().decode(), path, received_at)
        record.route, record.status, record.code = route, HTTPStatus.SERVICE_UNAVAILABLE, PROBLEMS[Overloaded].code
        self.admission.refuse(reason)
        finish_request(record)
        return response_bytes(self._response, record, headers)


class _Request:
    """What the parser finds in a head."""

    def __init__(self) -> None:
        self.url = b""
        self.id = b""
        self.hosts = 0
        self.needs_full_parse = False
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"x-request-id":
            self.id = value
        elif name == b"host":
            self.hosts += 1 if HOST.fullmatch(value) else 2
        elif name == b"origin" or (name == b"connection" and value.lower() != b"keep-alive"):
            self.needs_full_parse = True

    def on_message_complete(self) -> None:
        self.complete = True
