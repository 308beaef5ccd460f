"""The environment, validated.

Each setting is one field: its default, its range, and a description of what it takes and why.
`.env.example` and the README list the same names; tests compare them.
"""

import os
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from dotenv import dotenv_values
from dotenv.parser import parse_stream
from psycopg import ProgrammingError, pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic.types import StringConstraints

# PostgreSQL counts milliseconds, and takes 0 as no limit.
Seconds = Annotated[float, Field(ge=0.001, le=3600, allow_inf_nan=False)]

Count = Annotated[int, Field(ge=1, le=1000)]

# With a slash at its beginning and none at its end.
RootPath = Annotated[
    str,
    StringConstraints(pattern=r"^(/[A-Za-z0-9._~-]+)*$"),
    BeforeValidator(lambda value: f"/{value.strip('/')}".rstrip("/")),
]


# libpq reads these variables of the environment at every connection, and a connection string cannot override PGTZ or
# PGSERVICE. So they are removed, except the paths of certificates: only the settings count.
LIBPQ_VARIABLE = re.compile(r"PG[A-Z_]+")
KEPT_VARIABLES = {"PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY", "PGSSLCRL", "PGSSLCRLDIR"}

URL_SCHEME = re.compile(r"^(jdbc:)?postgres(ql)?(\+\w+)?://")  # SQLAlchemy appends the driver
LIBPQ_PARAMETERS = {option.keyword.decode() for option in pq.Conninfo.parse(b"")} | {"ssl"}  # ssl=true is JDBC's

# Parameters that other libraries and providers put into a URL. libpq would refuse them.
FOREIGN_PARAMETERS = {
    *("pgbouncer", "schema", "connection_limit", "pool_timeout", "socket_timeout", "statement_cache_size"),  # Prisma
    *("sslaccept", "sslidentity", "single_use_connections"),  # Prisma
    *("pool", "pool_size", "max_overflow", "prepared_statements", "encoding", "charset", "serverVersion"),
    *("pool_max_conns", "pool_min_conns", "default_query_exec_mode", "statement_cache_capacity"),  # pgx
    *("prepareThreshold", "preparedStatementCacheQueries", "currentSchema", "reWriteBatchedInserts"),  # JDBC
    *("prepared_statement_cache_size", "command_timeout", "conn_max_age"),  # asyncpg, Django
    *("supa", "workaround", "uselibpqcompat", "timezone"),  # Supabase, node-postgres
}

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*|\[[0-9a-fA-F:]+\])(:[0-9]{1,5})?")


class SettingsError(Exception):
    """One line for each mistake: the variable, its value (never a secret), and what it takes."""


def _check_ports(ports: str) -> str:
    if not all(port.isdecimal() and 0 < int(port) < 65536 for port in ports.split(",")):  # noqa: PLR2004
        raise ValueError(ports)
    return ports


def setting(default: Any, takes: str, **limits: Any) -> Any:  # noqa: ANN401 - as pydantic's Field
    """Declare a setting: its default, what it takes and why, and its limits."""
    return Field(default=default, description=takes, **limits)


class Settings(BaseModel):
    """Every setting of the service. Times are seconds, sizes are bytes."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    # Essential: where the database is, where the service listens.
    database_hostname: str | None = setting(
        None,
        "a host name, an address, or the directory of a Unix socket; several are separated by commas, and the one that"
        " takes writes is used",
    )
    database_port: Annotated[str, AfterValidator(_check_ports)] = setting(
        "5432", "a port, 1 to 65535; of several hosts one for all, or one for each, separated by commas"
    )
    database_name: str | None = setting(None, "the name of the database")
    database_username: str | None = setting(None, "the role to connect as")
    database_password: SecretStr | None = setting(None, "the role's password, if it has one")
    database_password_file: Path | None = setting(
        None, "a file that holds the password, read at each connection, so that it can be changed"
    )
    database_url: SecretStr | None = setting(None, "postgresql://user:password@host:port/name, in place of the above")
    database_read_url: SecretStr | None = setting(
        None,
        "where replicas are, as in DATABASE_URL: they serve reads when the primary does not, marked by"
        " `Read-From: replica`",
    )
    host: str = setting(
        "127.0.0.1",
        "the address or name to listen on; * or :: for every interface, 0.0.0.0 for IPv4 only, localhost for both"
        " families",
        min_length=1,
    )
    port: int = setting(8000, "a port, 0 to 65535; 0 takes a free one", ge=0, le=65535)
    api_keys_file: Path | None = setting(
        None, "the file of the API keys; unset: no key is needed, and only this machine is answered"
    )

    # Frequent: how much of the machine and of PostgreSQL's connections to use.
    reads: Literal["primary", "replica"] = setting(
        "primary", "replica: have DATABASE_READ_URL serve reads all the time, or primary"
    )
    workers: int = setting(1, "how many worker processes, 1 to 512; one for each core is fastest", ge=1, le=512)
    worker_threads: Count = setting(
        8, "how many threads, and so how many connections, each worker has, 1 to 1000; 8 keep one core busy"
    )
    instances: Count = setting(1, "how many copies of this service share the database and its connections, 1 to 1000")
    worker_affinity: bool = setting(
        default=True,
        takes="true or false: whether each worker runs on one core of its own; its threads cannot use more",
    )
    root_path: RootPath = setting(
        "", "the path under which a proxy shows the service, such as /api, whether the proxy strips it or not"
    )
    log_format: Literal["json", "text"] = setting("json", "json or text; `make run` uses text unless this is set")
    anonymous_access: Literal["read", "write"] | None = setting(
        None, "read or write: what everybody may do without an API key, from wherever"
    )
    allowed_hosts: str = setting(
        "", "more names of this machine, separated by commas, that are answered without API keys beside localhost"
    )
    cors_origins: str = setting(
        "", "origins such as https://app.example.com, separated by commas; * for any, without credentials"
    )

    # Rare: limits. Each timeout is shorter than the next, so that the error names the cause:
    # lock < statement < leak threshold < request deadline < graceful shutdown.
    queue_length: int = setting(
        4096,
        "how many requests may wait for a thread, 0 to 100000; a waiting read is only its bytes, so by default every"
        " client may wait",
        ge=0,
        le=100_000,
    )
    queue_wait: Seconds = setting(2.0, "seconds a request may wait for a thread; most clients have given up by then")
    connect_timeout: Annotated[float, Field(ge=1, le=3600, allow_inf_nan=False)] = setting(
        3.0, "seconds to open a connection, 1 or more: libpq counts whole seconds, and takes 1 as 2"
    )
    lock_timeout: Seconds = setting(2.0, "seconds a statement waits for a lock")
    statement_timeout: Seconds = setting(5.0, "seconds a statement may run; the slowest here takes milliseconds")
    idle_in_transaction_timeout: Seconds = setting(5.0, "seconds a transaction may be idle")
    leak_threshold: Seconds = setting(8.0, "seconds after which a connection still held is reported with its stack")
    request_deadline: Seconds = setting(
        10.0, "seconds from the end of a request to its response, whatever hangs; its body may take as long"
    )
    graceful_shutdown_timeout: Seconds = setting(15.0, "seconds that requests in progress have to finish at shutdown")
    drain_delay: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = setting(
        0.0,
        "seconds after SIGTERM for which requests are still taken and /readyz is 503, so that a load balancer can see"
        " it; 0 to 3600",
    )
    keep_alive: int = setting(
        75,
        "seconds that an idle connection stays open, 1 to 3600; a proxy or load balancer in front must close its own"
        " first, most after 60",
        ge=1,
        le=3600,
    )
    max_body_size: int = setting(65_536, "bytes of a request's body, 1024 to 16777216", ge=1024, le=16_777_216)

    @model_validator(mode="after")
    def _check_database(self) -> Self:
        given = sorted(
            name
            for name in self.model_fields_set
            if name.startswith("database_") and name not in ("database_url", "database_read_url")
        )
        if self.database_url is not None:
            if given:
                raise ValueError(f"DATABASE_URL and {given[0].upper()} are both set: keep one of the two forms")
            _read_url(self.database_url)
        elif given:
            for name in ("database_hostname", "database_name", "database_username"):
                if name not in given:
                    raise ValueError(f"{name.upper()} is missing: it takes {takes(name)}; {given[0].upper()} is set")
        hosts, ports = ((value or "").count(",") for value in (self.database_hostname, self.database_port))
        if ports not in (0, hosts):
            raise ValueError(f"DATABASE_PORT={self.database_port!r}: it takes {takes('database_port')}")
        if self.database_password is not None and self.database_password_file is not None:
            raise ValueError("DATABASE_PASSWORD and DATABASE_PASSWORD_FILE are both set: keep one")
        if self.database_read_url is not None:
            _read_url(self.database_read_url, "DATABASE_READ_URL")
        elif self.reads == "replica":
            raise ValueError("READS=replica needs DATABASE_READ_URL")
        return self

    @model_validator(mode="after")
    def _check_timeouts(self) -> Self:
        order = ("lock_timeout", "statement_timeout", "leak_threshold", "request_deadline", "graceful_shutdown_timeout")
        for shorter, longer in pairwise(order):
            if getattr(self, shorter) >= getattr(self, longer):
                raise ValueError(
                    f"{shorter.upper()}={getattr(self, shorter):g} must be shorter"
                    f" than {longer.upper()}={getattr(self, longer):g}"
                )
        if self.queue_wait >= self.request_deadline:
            raise ValueError(
                f"QUEUE_WAIT={self.queue_wait:g} must be shorter than REQUEST_DEADLINE={self.request_deadline:g}"
            )
        return self

    @model_validator(mode="after")
    def _check_origins(self) -> Self:
        for origin in self.allowed_origins:
            if origin != "*" and not ORIGIN.fullmatch(origin):
                raise ValueError(f"CORS_ORIGINS={origin!r}: it takes {takes('cors_origins')}")
        if "*" in self.allowed_origins and len(self.allowed_origins) > 1:
            raise ValueError("CORS_ORIGINS: * allows every origin already; keep it alone or list origins")
        return self

    @property
    def has_database(self) -> bool:
        """Whether a database is configured."""
        return self.database_hostname is not None or self.database_url is not None

    @property
    def allowed_origins(self) -> list[str]:
        """The entries of CORS_ORIGINS."""
        return _items(self.cors_origins)

    @property
    def hosts(self) -> list[str]:
        """The entries of ALLOWED_HOSTS."""
        return _items(self.allowed_hosts)

    @property
    def is_local_only(self) -> bool:
        """Whether only this machine is answered."""
        return self.api_keys_file is None and self.anonymous_access is None

    @property
    def warnings(self) -> list[str]:
        """A line for each URL with parameters that have no effect."""
        urls = {"DATABASE_URL": self.database_url, "DATABASE_READ_URL": self.database_read_url}
        ignored = {name: _read_url(url, name)[1] for name, url in urls.items() if url}
        return [
            f"{name}: ignored, as they are for other libraries: {', '.join(parameters)}"
            for name, parameters in ignored.items()
            if parameters
        ]

    def server(self) -> str:
        """Return the configured server as a libpq connection string, password included.

        Raises SettingsError when no database is configured, or when the file with the password cannot be read.
        """
        if not self.has_database:
            raise SettingsError(
                "DATABASE_URL is missing: set it to postgresql://user:password@host:port/name."
                " Only `make run` starts a PostgreSQL of its own"
            )
        if self.database_url is not None:
            return _read_url(self.database_url)[0]
        return make_conninfo(
            host=self.database_hostname,
            port=self.database_port,
            dbname=self.database_name,
            user=self.database_username,
            password=self._password(),
        )

    def read_server(self) -> str:
        """Return the replicas as a libpq connection string, password included. Call it only when there are some."""
        assert self.database_read_url is not None  # noqa: S101 - see above
        return _read_url(self.database_read_url)[0]

    @property
    def watch_connections(self) -> int:
        """How many connections each worker uses to watch one server, at most; none if there is only one server."""
        if self.database_read_url is not None:
            return 2  # one for each URL, which may have the same hosts
        return int(self.has_database and "," in str(conninfo_to_dict(self.server()).get("host", "")))

    def _password(self) -> str | None:
        if self.database_password_file is not None:
            try:
                return self.database_password_file.read_text(encoding="utf-8").rstrip("\r\n")
            except (OSError, UnicodeDecodeError) as exc:
                raise SettingsError(
                    f"DATABASE_PASSWORD_FILE={self.database_password_file}: it takes {takes('database_password_file')}"
                ) from exc
        return self.database_password.get_secret_value() if self.database_password else None


def _items(text: str) -> list[str]:
    return [item.strip() for item in text.split(",") if item.strip()]


def _read_url(secret: SecretStr, variable: str = "DATABASE_URL") -> tuple[str, list[str]]:
    """Return the URL in the setting `variable` as libpq takes it, and the parameters left out, of other libraries.

    Raises ValueError, which names parameters and quotes no value.
    """
    url = secret.get_secret_value()
    base, _, query = URL_SCHEME.sub("postgresql://", url).partition("?")
    kept, ignored, unknown = [], [], []
    for parameter in query.split("&") if query else ():
        name = parameter.partition("=")[0]
        if name in FOREIGN_PARAMETERS:
            ignored.append(name)
        else:
            kept.append(parameter)
            unknown += [] if name in LIBPQ_PARAMETERS else [name]
    server = f"{base}?{'&'.join(kept)}" if kept else base
    if unknown or not _is_conninfo(server):
        # Name no parameter that may be the rest of a password with an unescaped ? or &.
        is_named = unknown and _is_conninfo(base) and "@" not in query and "password" not in url
        names = ", ".join(unknown)
        raise ValueError(
            f"{variable} {f'has parameters of other programs, remove {names}' if is_named else 'holds no valid URL'}:"
            " it takes postgresql://user:password@host:port/name,"
            " with special characters of the password percent-encoded (@ is %40, / is %2F, ? is %3F, & is %26)"
        )
    return server, ignored


def _is_conninfo(text: str) -> bool:
    """Return whether libpq parses `text` as its author meant it: an unescaped @ or / of a password is in the host."""
    try:
        parts = conninfo_to_dict(text)
        _check_ports(",".join(port or "5432" for port in str(parts.get("port", "")).split(",")))
    except (ProgrammingError, ValueError):  # the message of libpq would quote the password
        return False
    return "@" not in f"{parts.get('host', '')}{parts.get('dbname', '')}"


def takes(name: str) -> str:
    """Return what the setting `name` takes, in words."""
    field = Settings.model_fields[name]
    return f"{field.description}{'; at most 3600' if field.annotation is float else ''}"


def load(environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Settings:
    """Read the settings: the environment first, then the file `dotenv`, then the defaults. An empty value is unset.

    Raises SettingsError, whose text is one line for each mistake.
    """
    environ = os.environ if environ is None else environ
    found = {**_read(dotenv), **environ}
    given = {name: _strip(name, found.get(name.upper(), "")) for name in Settings.model_fields}
    try:
        settings = Settings.model_validate({name: value for name, value in given.items() if value})
    except ValidationError as exc:
        raise SettingsError("\n".join(_line(error) for error in exc.errors())) from None
    if settings.has_database:
        settings.server()  # raises when the password file cannot be read
    return settings


def near_misses(environ: Mapping[str, str] | None = None, dotenv: Path = Path(".env")) -> Iterator[str]:
    """Yield a line for each variable whose name is similar to that of a setting, so that it has no effect.

    Raises SettingsError when the file cannot be read.
    """
    given = {**_read(dotenv), **(os.environ if environ is None else environ)}
    names = {name.upper() for name in Settings.model_fields}
    for name in sorted(given.keys() - names):
        similar = get_close_matches(name.upper(), names, cutoff=0.81)  # PGPORT and PORT are at 0.8
        longer = [each for each in similar if each.startswith(name.upper())]  # DATABASE_USER is no DATABASE_URL
        if similar and (meant := [*longer, *similar][0]) not in given:
            yield f"{name} is no setting and has no effect: did you mean {meant}?"


def export_telemetry(dotenv: Path = Path(".env")) -> None:
    """Put the OTEL_* variables of the file into the environment, where OpenTelemetry reads them."""
    for name, value in _read(dotenv).items():
        if name.startswith("OTEL_"):
            os.environ.setdefault(name, value)


def remove_libpq_variables() -> list[str]:
    """Remove libpq's variables from the environment of this process and of its children; return a warning."""
    names = [name for name in os.environ if LIBPQ_VARIABLE.fullmatch(name) and name not in KEPT_VARIABLES]
    for name in names:
        del os.environ[name]
    return [f"ignored, as the settings alone say how to connect: {', '.join(sorted(names))}"] if names else []


def _strip(name: str, value: str) -> str:
    """Return `value` without the spaces and quotes around it, which `docker --env-file` keeps; but not a password."""
    if name == "database_password":
        return value
    value = value.strip()
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            for binding in parse_stream(file):
                if binding.error or (binding.key and binding.value is None):
                    raise SettingsError(f"{path}, line {binding.original.line}: it takes NAME=value")
        return {name: value for name, value in dotenv_values(path, interpolate=False).items() if value is not None}
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsError(f"{path} cannot be read: {exc}") from exc


def _line(error: Any) -> str:  # noqa: ANN401 - pydantic's ErrorDetails
    if not error["loc"]:  # raised by a validator above, whose text names the variable
        return str(error["ctx"]["error"])
    name = error["loc"][0]
    return f"{name.upper()}={error['input']!r}: it takes {takes(name)}"
