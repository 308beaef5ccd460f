"""Traces, by FastAPI's own support for OpenTelemetry, and a span for each query. Off without an exporter."""

import os
import re
from collections.abc import Mapping
from typing import Any

from fastapi.telemetry import TelemetryConfig
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from psycopg import Error
from psycopg.rows import TupleRow
from starlette.types import ASGIApp, Receive, Scope, Send

from service.database.connection import PooledConnection

TABLE = re.compile(r"\b(?:FROM|INTO|UPDATE)\s+([\w.\"]+)")

_TRACER = trace.get_tracer("service")


def is_wanted() -> bool:
    """Return whether OpenTelemetry is configured. Its variables have this prefix."""
    return any(name.startswith("OTEL_") for name in os.environ)


def configuration() -> TelemetryConfig:
    """Return what FastAPI exports: traces, with OTEL_EXPORTER_OTLP_ENDPOINT set.

    Its metrics and logs would be those of one worker each: ours are at /metrics and on standard output.
    """
    return {"auto_configure": True, "tracing": is_wanted(), "metrics": False, "logs": False}


def configured() -> bool:
    """Return whether spans are exported. Call it after the application has started."""
    span = _TRACER.start_span("configured?")
    return span.is_recording()  # it is never ended, so it is not exported


def connection_class() -> type[PooledConnection]:
    """Return the class of all connections. Call it after the application has started."""
    return TracedConnection if configured() else PooledConnection


class HideQuery:
    """ASGI middleware that takes the query, in which there may be somebody's email, out of the request's span."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope.get("query_string"):
            trace.get_current_span().set_attribute("url.query", "REDACTED")
        await self.app(scope, receive, send)


class TracedConnection(PooledConnection):
    """Has a span for each statement, with its text as it is written here: no value is in it."""

    def fetchone(self, query: str, params: Mapping[str, Any], setup: str = "") -> TupleRow | None:
        """Run a statement."""
        text = " ".join(query.split())
        operation, found = text.partition(" ")[0].upper(), TABLE.search(text)
        table = found[1].replace('"', "") if found else ""
        attributes = {
            "db.system.name": "postgresql",
            "db.namespace": self.info.dbname,
            "db.operation.name": operation,
            "db.query.text": text,
            "server.address": self.info.host,
            "server.port": self.info.port,
            **({"db.collection.name": table} if table else {}),
        }
        with _TRACER.start_as_current_span(
            f"{operation} {table}".strip(), kind=SpanKind.CLIENT, attributes=attributes,
            record_exception=False, set_status_on_exception=False,  # its words may quote a row
        ) as span:  # fmt: skip
            try:
                return super().fetchone(query, params, setup)
            except Error as exc:
                span.set_status(StatusCode.ERROR)
                span.set_attribute("error.type", type(exc).__qualname__)
                if exc.sqlstate:
                    span.set_attribute("db.response.status_code", exc.sqlstate)
                raise
