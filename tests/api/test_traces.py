"""Traces, as a collector of OpenTelemetry gets them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from service.extras import tracing
from tests.support.polling import until
from tests.support.postgres import Cluster, TestDatabase
from tests.support.process import CHECKOUT, Service
from tests.support.sessions import locked, waiting

ADA = {"id": 1, "fname": "Ada", "lname": "Lovelace", "email": "ada@example.com", "password": "correct horse"}
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


class Collector:
    """Takes what is exported, over HTTP on a free port."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def environment(self) -> dict[str, str]:
        return {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{self.server.server_port}",
            "OTEL_BSP_SCHEDULE_DELAY": "50",  # milliseconds between two exports
            "OTEL_SERVICE_NAME": "users",
        }

    def spans(self) -> list[dict[str, Any]]:
        """Return what came so far."""
        found = []
        for body in self.bodies:
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    found += [
                        {
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "failed": span.status.code == 2,
                            **{each.key: _plain(each.value) for each in span.attributes},
                        }
                        for span in scope.spans
                    ]
        return found


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    collector = Collector()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(scope="module")
def database(cluster: Cluster) -> TestDatabase:
    return cluster.create_database()


@pytest.fixture(scope="module")
def service(
    database: TestDatabase, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """A service that has OpenTelemetry's variables from its .env."""
    folder = tmp_path_factory.mktemp("elsewhere")
    (folder / ".env").write_text("".join(f"{name}={value}\n" for name, value in collector.environment.items()))
    settings = {**database.environment, "LOCK_TIMEOUT": "0.2", "PYTHONPATH": str(CHECKOUT)}
    with Service(settings, checkout=folder) as service:
        yield service


def named(collector: Collector, name: str, **attributes: object) -> dict[str, Any]:
    """Return the first span of that name, when it has come."""

    def found() -> list[dict[str, Any]]:
        return [
            span
            for span in collector.spans()
            if span["name"] == name and all(span.get(key) == value for key, value in attributes.items())
        ]

    return until(found, f"a span {name} with {attributes}; there are {[span['name'] for span in collector.spans()]}")[0]


def test_a_request_is_a_span_and_its_query_one_below_it(service: Service, collector: Collector) -> None:
    answer = service.client.get("/users/7", headers={"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert answer.status_code == 404
    request = named(collector, "GET /users/{user_id}", trace=TRACE)
    query = named(collector, "SELECT public.user", trace=TRACE)
    assert (request["parent"], request["http.route"]) == (PARENT, "/users/{user_id}")
    assert request["http.response.status_code"] == 404
    above = {span["id"]: span["parent"] for span in collector.spans()}
    parents: list[str] = []
    while query_id := (parents[-1] if parents else query["parent"]):
        parents.append(above.get(query_id, ""))
    assert PARENT in parents, "the query's span is not below the request's"
    assert query["db.system.name"] == "postgresql"
    assert query["db.operation.name"] == "SELECT"
    assert query["db.collection.name"] == "public.user"
    assert "WHERE id = %(id)s" in query["db.query.text"]
    assert query["server.address"]


def test_a_query_that_fails_says_so_by_its_code_and_not_by_its_words(
    service: Service, collector: Collector, database: TestDatabase
) -> None:
    assert service.client.post("/users", json=ADA).status_code == 201
    assert service.client.post("/users", json={**ADA, "id": 2}).status_code == 409
    failed = named(collector, "INSERT public.user", failed=True)
    assert (failed["error.type"], failed["db.response.status_code"]) == ("UniqueViolation", "23505")
    with locked(database):
        assert service.client.get("/users").status_code == 504
    named(collector, "GET /users", failed=True)


def test_a_request_that_finds_the_queue_full_is_a_span_too(cluster: Cluster, collector: Collector) -> None:
    full = cluster.create_database()
    settings = {**full.environment, **collector.environment, "WORKER_THREADS": "1", "QUEUE_LENGTH": "0"}
    with Service(settings) as service, ThreadPoolExecutor(1) as holder:
        with locked(full):
            holder.submit(service.client.get, "/users")
            headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
            until(lambda: waiting(full) == 1, "its place is taken")
            assert httpx.get(f"{service.url}/users/9", headers=headers, timeout=30).status_code == 503
        named(collector, "GET /users/{user_id}", trace=TRACE, **{"http.response.status_code": 503})


def test_no_span_says_who_somebody_is_or_what_the_password_was(service: Service, collector: Collector) -> None:
    service.client.post("/users", json={**ADA, "id": 3, "email": "eve@example.com"})
    service.client.get("/users?email=eve@example.com")
    service.client.post("/users/authenticate", json={"email": "eve@example.com", "password": "battery staple"})
    named(collector, "GET /users", **{"url.query": "REDACTED"})
    named(collector, "POST /users/authenticate")
    everything = b"".join(collector.bodies)
    for secret in ("eve@example.com", "ada@example.com", "correct horse", "battery staple", "Lovelace", "argon2"):
        assert secret.encode() not in everything


def test_without_an_exporter_nothing_is_traced() -> None:
    """And the pool's connections make no spans, so that it costs nothing: see extras/tracing.py."""
    assert not tracing.configured()
