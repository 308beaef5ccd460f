"""Who may do what: every route declares a scope with `allow`, and every caller has scopes.

A route without a declared scope stops the start. `authorize` runs before the body is read and before admission.
"""

import re
from base64 import b64decode
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, TypeVar

from fastapi.security import HTTPBasic, HTTPBearer
from starlette.types import Scope

from service.settings import Settings
from service.telemetry.record import RECORD
from service.web.api_keys import GRANTS, ApiKeys, Caller
from service.web.responses import FailureWithHeaders

EndpointT = TypeVar("EndpointT", bound=Callable[..., Any])

OPEN = "open"  # the scope of a route that needs no key
ANY = "any"  # the scope of what every key may do
SCOPES = {OPEN, ANY, *GRANTS}

PROBES = {"/livez", "/readyz"}  # answered whatever the Host: an orchestrator's probes use the address of a container

MAX_KEY = 256  # bytes; longer ones are not hashed

LOCALHOST = re.compile(rb"(?:(?:[a-z0-9-]+\.)*localhost|127\.0\.0\.1|\[::1\])")
PORT = re.compile(rb":[0-9]*$")
FORWARDED = {b"forwarded", b"x-forwarded-for", b"x-forwarded-host", b"x-real-ip", b"via"}  # a proxy adds one of them

AUTHORIZATION = re.compile(rb"\r\n[Aa]uthorization:([^\r\n]*)")  # in capitals, it is found when the head is parsed

NOBODY = Caller("", frozenset())
LOCAL = Caller("", frozenset(GRANTS))

# For OpenAPI: FastAPI's own classes describe what `_key` reads.
SCHEMES = {
    "bearer": HTTPBearer(description="The API key.").model,
    "basic": HTTPBasic(description="Any user name, and the API key as the password.").model,
}
Security = list[dict[str, list[str]]]


class Unauthenticated(Exception):
    """The request has no valid API key."""


class Forbidden(FailureWithHeaders):
    """The key is valid, and does not allow this. The response names the scope that does (RFC 6750, 3.1)."""

    def __init__(self, scope: str) -> None:
        challenge = f'Bearer realm="users", error="insufficient_scope", scope="{scope}"'
        super().__init__({"WWW-Authenticate": challenge})


class UnknownHost(Exception):
    """There are no API keys, and the request may not come from this machine."""


def allow(scope: str) -> Callable[[EndpointT], EndpointT]:
    """Declare who may call an endpoint: "read", "write", "signup", "operator", or OPEN, ANY."""
    if scope not in SCOPES:
        raise ValueError(f"{scope!r} is no scope: choose one of {', '.join(sorted(SCOPES))}")

    def declare(endpoint: EndpointT) -> EndpointT:
        endpoint.scope = scope  # type: ignore[attr-defined]
        return endpoint

    return declare


def declared_scope(endpoint: Callable[..., Any]) -> str:
    """Return the scope that `allow` has declared. Raises TypeError when there is none."""
    scope: str | None = getattr(endpoint, "scope", None)
    if scope is None:
        raise TypeError(f"{getattr(endpoint, '__name__', endpoint)} declares no scope: add @allow(...) to it")
    return scope


class Access:
    """Decides about every request. In the application's state as `access`."""

    def __init__(self, settings: Settings) -> None:
        """Read the API keys, if there is a file of them."""
        self._keys = ApiKeys(settings.api_keys_file) if settings.api_keys_file else None
        self._anonymous = Caller("", GRANTS[settings.anonymous_access]) if settings.anonymous_access else NOBODY
        self._local_only = settings.is_local_only
        self._is_local_host = lru_cache(maxsize=64)(_host_check(settings.hosts))

    def authorize(self, http: Scope, required: str) -> None:
        """Let a request pass that has the `required` scope. Raises UnknownHost, Unauthenticated, Forbidden."""
        caller = self._caller(http)
        RECORD.get().caller = caller.name
        if required == OPEN or required in caller.scopes or (required == ANY and caller.scopes):
            return
        raise Forbidden(required) if caller.name else Unauthenticated

    def security(self, required: str) -> Security:
        """Return OpenAPI's security requirements for the `required` scope; an empty one stands for no key."""
        if self._keys is None or required == OPEN:
            return []
        without_key: Security = [{}] if required in self._anonymous.scopes else []
        return without_key + [{name: []} for name in SCHEMES]

    def may_wait(self, head: bytes) -> bool:
        """Return whether the read with this raw head may wait for a thread."""
        if self._keys is None:
            return True
        return "read" in self._key_holder(AUTHORIZATION.findall(head)).scopes

    def _caller(self, http: Scope) -> Caller:
        if self._local_only:
            if http["path"] not in PROBES and not self._is_local(http):
                raise UnknownHost
            return LOCAL
        return self._key_holder([value for name, value in http["headers"] if name == b"authorization"])

    def _key_holder(self, authorization: list[bytes]) -> Caller:
        """Return who holds the key. A wrong one gives fewer rights than none, so that nobody believes that it works."""
        if not authorization or self._keys is None:
            return self._anonymous
        if len(authorization) > 1:
            return NOBODY
        return self._keys.caller(_key(authorization[0])) or NOBODY

    def _is_local(self, http: Scope) -> bool:
        """Return whether a program or a browser on this machine asks.

        The host must be a name of this machine: a web page could have a name of its own resolve to it. A proxy on this
        machine asks for somebody else: it adds a header, or speaks HTTP/1.0, as nginx before 1.29.7 does.
        """
        headers = dict(http["headers"])
        peer = (http.get("client") or ("",))[0]
        return (
            (peer == "::1" or peer.startswith(("127.", "::ffff:127.")))
            and http["http_version"] != "1.0"
            and self._is_local_host(headers.get(b"host", b""))
            and FORWARDED.isdisjoint(headers)
        )


def _host_check(others: Iterable[str]) -> Callable[[bytes], bool]:
    allowed = {host.lower().encode() for host in others}

    def is_local_host(value: bytes) -> bool:
        host = PORT.sub(b"", value).lower()
        return host in allowed or LOCALHOST.fullmatch(host) is not None

    return is_local_host


def _key(authorization: bytes) -> bytes:
    """Return the key of an Authorization header, as Bearer (RFC 6750) or Basic (RFC 7617); empty when it has none."""
    scheme, _, given = authorization.strip(b" \t").partition(b" ")
    given = given.strip(b" ")
    if len(given) > MAX_KEY:
        return b""
    if scheme.lower() == b"bearer":
        return given
    if scheme.lower() == b"basic":
        with suppress(ValueError):
            return b64decode(given, validate=True).partition(b":")[2]
    return b""
