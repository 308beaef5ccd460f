"""uvicorn's HTTP, with the answer to what is no HTTP in the shape of every other error."""

from uuid import uuid4

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.problems import MALFORMED_REQUEST, render


class Protocol(HttpToolsProtocol):
    """Named to uvicorn in __main__.py."""

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - the parser's words help nobody
        """Answer bytes that cannot be parsed, for which no application is called, and close."""
        response = render(MALFORMED_REQUEST, headers={"X-Request-ID": uuid4().hex, "Connection": "close"})
        head = b"".join(name + b": " + value + b"\r\n" for name, value in response.raw_headers)
        self.transport.write(STATUS_LINE[400] + head + b"\r\n" + response.body)
        self.transport.close()
