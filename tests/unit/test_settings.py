"""Where a setting comes from, and what a wrong one is told."""

import re
from pathlib import Path

import pytest

from service.extras.http import listen
from service.settings import Settings, SettingsError, load, near_misses
from tests.support.process import CHECKOUT

SECRET = "hunter2"
NO_FILE = Path("/nowhere/.env")

# In each, everything is wrong.
ROUNDS = [
    {
        "DATABASE_PORT": "0", "PORT": "many", "WORKERS": "0", "WORKER_THREADS": "1.5", "INSTANCES": "-1",
        "QUEUE_LENGTH": "-1", "QUEUE_WAIT": "nan", "CONNECT_TIMEOUT": "0.5", "LOCK_TIMEOUT": "0",
        "STATEMENT_TIMEOUT": "1e999", "IDLE_IN_TRANSACTION_TIMEOUT": "-inf", "LEAK_THRESHOLD": "soon",
        "REQUEST_DEADLINE": "inf", "GRACEFUL_SHUTDOWN_TIMEOUT": "3601", "KEEP_ALIVE": "75.5", "MAX_BODY_SIZE": "64KiB",
    },
    {
        "PORT": "70000", "WORKERS": "four", "WORKER_THREADS": "0", "INSTANCES": "0", "QUEUE_LENGTH": "100001",
        "QUEUE_WAIT": "2s", "REQUEST_DEADLINE": "nan", "MAX_BODY_SIZE": "100",
    },
    {"REQUEST_DEADLINE": "-1", "PORT": "-1", "WORKERS": "513", "WORKER_THREADS": "1001",
     "ANONYMOUS_ACCESS": "operator"},
]  # fmt: skip

TOO_MUCH = {
    "PORT": "65535", "WORKERS": "512", "WORKER_THREADS": "1000", "INSTANCES": "1000", "QUEUE_LENGTH": "100000",
    "QUEUE_WAIT": "3600", "CONNECT_TIMEOUT": "3600", "LOCK_TIMEOUT": "3600", "STATEMENT_TIMEOUT": "3600",
    "LEAK_THRESHOLD": "3600", "REQUEST_DEADLINE": "3600", "GRACEFUL_SHUTDOWN_TIMEOUT": "3600",
    "IDLE_IN_TRANSACTION_TIMEOUT": "3600", "KEEP_ALIVE": "3600", "MAX_BODY_SIZE": "16777216",
}  # fmt: skip


def refusal(given: dict[str, str]) -> str:
    """Return what is said when the service cannot start with these settings."""
    with pytest.raises(SettingsError) as refused, listen.bind(load(given, NO_FILE)):
        pass
    return str(refused.value)


@pytest.mark.parametrize("mistakes", ROUNDS, ids=range(len(ROUNDS)))
def test_each_wrong_value_has_one_line_with_what_it_takes(mistakes: dict[str, str]) -> None:
    lines = refusal(mistakes).splitlines()
    assert sorted(line.partition("=")[0] for line in lines) == sorted(mistakes)
    for line in lines:
        assert mistakes[line.partition("=")[0]] in line
        assert "it takes" in line


@pytest.mark.parametrize(("name", "most"), TOO_MUCH.items())
def test_a_value_that_is_too_large_is_refused_with_the_limit(name: str, most: str) -> None:
    with pytest.raises(SettingsError, match=f"(?s)^{name}=.*it takes.*{most}"):
        load({name: str(int(most) + 1)}, NO_FILE)


@pytest.mark.parametrize("name", ["LOCK_TIMEOUT", "STATEMENT_TIMEOUT", "IDLE_IN_TRANSACTION_TIMEOUT"])
def test_a_timeout_that_postgresql_would_read_as_none_at_all_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=name):
        load({"LOCK_TIMEOUT": "0.0001", name: "0.0002"}, NO_FILE)  # 0 ms, which is no limit


@pytest.mark.parametrize(
    ("shorter", "longer"),
    [
        ("LOCK_TIMEOUT", "STATEMENT_TIMEOUT"),
        ("STATEMENT_TIMEOUT", "LEAK_THRESHOLD"),
        ("LEAK_THRESHOLD", "REQUEST_DEADLINE"),
        ("REQUEST_DEADLINE", "GRACEFUL_SHUTDOWN_TIMEOUT"),
        ("QUEUE_WAIT", "REQUEST_DEADLINE"),
    ],
)
def test_a_timeout_as_long_as_the_one_that_must_outlast_it_is_refused(shorter: str, longer: str) -> None:
    length = f"{getattr(Settings(), longer.lower()):g}"
    with pytest.raises(SettingsError, match=f"^{shorter}={length} .* {longer}={length}$"):
        load({shorter: length}, NO_FILE)


def test_timeouts_in_the_wrong_order_are_refused_in_one_line() -> None:
    line = refusal({"STATEMENT_TIMEOUT": "11", "LEAK_THRESHOLD": "12"})
    assert "LEAK_THRESHOLD=12" in line
    assert "REQUEST_DEADLINE=10" in line
    assert line.count("\n") == 0


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ({"DATABASE_URL": f"postgresql://u:{SECRET}@h/d", "DATABASE_NAME": "d"}, ["DATABASE_URL", "DATABASE_NAME"]),
        ({"DATABASE_HOSTNAME": "h"}, ["DATABASE_NAME", "DATABASE_HOSTNAME"]),
        ({"DATABASE_HOSTNAME": "h", "DATABASE_NAME": "d"}, ["DATABASE_USERNAME"]),
        ({"DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}, ["DATABASE_HOSTNAME"]),
        ({"DATABASE_PASSWORD": SECRET}, ["DATABASE_HOSTNAME", "DATABASE_PASSWORD"]),
        ({"DATABASE_PORT": "5432"}, ["DATABASE_HOSTNAME", "DATABASE_PORT"]),
    ],
    ids=["both forms", "only a host", "no user", "no host", "only a password", "only a port"],
)
def test_a_database_named_twice_or_by_half_is_refused(given: dict[str, str], names: list[str]) -> None:
    line = refusal(given)
    assert all(name in line for name in names), line
    assert SECRET not in line
    assert line.count("\n") == 0


def test_replicas_are_named_by_a_url_of_their_own_beside_either_form() -> None:
    url = {"DATABASE_READ_URL": f"postgres://u:{SECRET}@replica/d"}
    by_parts = {"DATABASE_HOSTNAME": "h", "DATABASE_NAME": "d", "DATABASE_USERNAME": "u"}
    for given in (by_parts, {"DATABASE_URL": "postgresql://u@h/d"}):
        assert load({**given, **url, "READS": "replica"}, NO_FILE).read_server() == f"postgresql://u:{SECRET}@replica/d"
    assert "DATABASE_READ_URL" in refusal({"READS": "replica"})
    wrong = refusal({"DATABASE_READ_URL": f"mysql://u:{SECRET}@h/d"})
    assert "DATABASE_READ_URL holds no valid URL" in wrong
    assert SECRET not in wrong


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("postgresql://u:p@h/d?sslmod=require", "sslmod"),
        ("postgresql://u:p@h/d?sslmode=require&pgbouncer=true&poolsize=3", "poolsize"),
        (f"postgresql://u:{SECRET}?a=1@h/d", "%3F"),
        (f"postgresql://u:{SECRET}/a@h/d", "%2F"),
        (f"postgresql://u:{SECRET}@a@h/d", "%40"),
        (f"postgresql://u:1?{SECRET}=1@h/d", "%3F"),
        (f"postgresql://h/d?user=u&password=1&{SECRET}=1", "%26"),
        (f"postgresql://h/d?sslpassword=1&{SECRET}", "%26"),
        (f"host=h dbname=d user=u password=1?{SECRET}", "%3F"),
        (f"postgresql://u:{SECRET}@h/d?nonsense=1", "nonsense"),
        (f"postgresql://u:{SECRET}@h:port/d", "valid URL"),
        (f"mysql://u:{SECRET}@h/d", "valid URL"),
    ],
)
def test_a_url_that_libpq_would_misread_is_refused_without_its_password(url: str, told: str) -> None:
    with pytest.raises(SettingsError, match=told) as refused:
        load({"DATABASE_URL": url}, NO_FILE)
    assert SECRET not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_each_url_has_a_warning_that_names_what_it_ignores() -> None:
    urls = {"DATABASE_URL": "postgresql://u@h/d?pgbouncer=true", "DATABASE_READ_URL": "postgresql://u@r/d?schema=a"}
    primary, replica = load(urls, NO_FILE).warnings
    assert primary.startswith("DATABASE_URL:")
    assert primary.endswith(": pgbouncer")
    assert replica.startswith("DATABASE_READ_URL:")
    assert replica.endswith(": schema")


@pytest.mark.parametrize(
    ("given", "server"),
    [
        ("postgres://u:p@h/d?pgbouncer=true", "postgresql://u:p@h/d"),
        ("postgresql+asyncpg://u:p@h/d?schema=public&sslmode=require", "postgresql://u:p@h/d?sslmode=require"),
        ("jdbc:postgresql://h/d?user=u&password=p&prepareThreshold=0", "postgresql://h/d?user=u&password=p"),
        ('"postgresql://u:p@h/d"\n', "postgresql://u:p@h/d"),
        (" 'postgresql://u:p@h:1,i:2/d?connection_limit=5' ", "postgresql://u:p@h:1,i:2/d"),
        ("host=h dbname=d user=u", "host=h dbname=d user=u"),
    ],
)
def test_a_url_of_another_library_is_read(given: str, server: str) -> None:
    assert load({"DATABASE_URL": given}, NO_FILE).server() == server


@pytest.mark.parametrize(
    ("hosts", "ports", "fits"),
    [("a,b", "1,2", True), ("a,b", "5433", True), ("a,b", "1,2,3", False), ("a", "1,2", False), ("a,b", "1,", False)],
)
def test_several_hosts_have_one_port_or_one_each(hosts: str, ports: str, *, fits: bool) -> None:
    given = {"DATABASE_NAME": "d", "DATABASE_USERNAME": "u", "DATABASE_HOSTNAME": hosts, "DATABASE_PORT": ports}
    if fits:
        assert f"port={ports}" in load(given, NO_FILE).server()
    else:
        with pytest.raises(SettingsError, match=f"^DATABASE_PORT='{ports}': it takes"):
            load(given, NO_FILE)


def test_spaces_and_quotes_around_a_password_are_a_part_of_it() -> None:
    given = load(
        {"DATABASE_NAME": "d", "DATABASE_USERNAME": "u", "DATABASE_HOSTNAME": "h", "DATABASE_PASSWORD": '" a "'},
        NO_FILE,
    )
    assert given.database_password
    assert given.database_password.get_secret_value() == '" a "'


@pytest.mark.parametrize("origin", [
    "app.example.com", "https://app.example.com/", "https://app.example.com/path", "https://", "null",
    "https://*.example.com", "https://user@app.example.com", "https://app.example.com:port", "https://a b.com",
    "https://[::1", "https://app.example.com, *",
])  # fmt: skip
def test_an_origin_that_no_browser_would_ever_send_is_refused(origin: str) -> None:
    with pytest.raises(SettingsError, match=r"^CORS_ORIGINS\b") as refused:
        load({"CORS_ORIGINS": origin}, NO_FILE)
    assert str(refused.value).count("\n") == 0


@pytest.mark.parametrize(
    ("given", "origins"),
    [
        ("", []),
        ("*", ["*"]),
        (
            " https://app.example.com , http://localhost:3000, ",
            ["https://app.example.com", "http://localhost:3000"],
        ),
        ("http://[::1]:3000", ["http://[::1]:3000"]),
    ],
)
def test_origins_are_separated_by_commas(given: str, origins: list[str]) -> None:
    assert load({"CORS_ORIGINS": given}, NO_FILE).allowed_origins == origins


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b", "no such host"])
def test_an_address_that_is_not_of_this_machine_is_refused(host: str) -> None:
    line = refusal({"HOST": host, "PORT": "0"})
    assert f"HOST={host}" in line
    assert line.count("\n") == 0


def test_what_is_empty_is_unset() -> None:
    assert load({name.upper(): "" for name in Settings.model_fields}, NO_FILE) == Settings()


def test_the_environment_beats_the_file_and_the_file_beats_the_default(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("# a comment\n\nWORKERS=3\nexport QUEUE_LENGTH='7'  # another\nINSTANCES=\nUNKNOWN=1\n")
    found = load({"WORKERS": "2"}, file)
    assert (found.workers, found.queue_length, found.instances, found.worker_threads) == (2, 7, 1, 8)


def test_the_file_is_taken_as_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("DATABASE_HOSTNAME='h-${HOME}'\nDATABASE_NAME=\"d-${HOME}\"\nDATABASE_USERNAME=u-${HOME}-$$\n")
    found = load({"HOME": "/home/ada"}, file)
    assert (found.database_hostname, found.database_name) == ("h-${HOME}", "d-${HOME}")
    assert found.database_username == "u-${HOME}-$$"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("DATABASE_URI", "DATABASE_URL"),
        ("DATABASE_HOST", "DATABASE_HOSTNAME"),
        ("DATABASE_USER", "DATABASE_USERNAME"),
        ("DATABASE_PASS", "DATABASE_PASSWORD"),
        ("WORKER", "WORKERS"),
        ("WORKERS_THREADS", "WORKER_THREADS"),
        ("KEEPALIVE", "KEEP_ALIVE"),
        ("workers", "WORKERS"),
        ("Database_Url", "DATABASE_URL"),
    ],
)
@pytest.mark.parametrize("place", ["environment", "file"])
def test_a_name_that_is_nearly_a_setting_is_reported(tmp_path: Path, given: str, meant: str, place: str) -> None:
    file = tmp_path / ".env"
    file.write_text(f"{given}=1\n" if place == "file" else "")
    (line,) = near_misses({given: "1"} if place == "environment" else {}, file)
    assert line.startswith(f"{given} ")
    assert line.endswith(f" {meant}?")


def test_names_of_other_programs_and_of_settings_that_are_set_are_not_reported() -> None:
    others = ("HOME", "HOSTNAME", "LOGNAME", "PATH", "PGHOST", "PGPORT", "PGDATABASE", "POSTGRES_PASSWORD", "TMPDIR",
              "USERS_SERVICE_HOST", "USERS_PORT_8000_TCP", "OTEL_SERVICE_NAME", "http_proxy", "UNKNOWN")  # fmt: skip
    assert list(near_misses(dict.fromkeys(others, "1"), NO_FILE)) == []
    assert list(near_misses({name.upper(): "1" for name in Settings.model_fields}, NO_FILE)) == []
    assert list(near_misses({"DATABASE_HOST": "h", "DATABASE_HOSTNAME": "h"}, NO_FILE)) == []


def test_env_example_lists_every_setting_with_its_default() -> None:
    listed = re.findall(r"^#?([A-Z_]+)=(.*)$", (CHECKOUT / ".env.example").read_text(), re.MULTILINE)
    assert sorted(name.lower() for name, _ in listed) == sorted(Settings.model_fields)
    given = {name: value for name, value in listed if not name.startswith("DATABASE_")}  # those are examples
    assert load(given, NO_FILE) == Settings()
    empty = {"API_KEYS_FILE", "ANONYMOUS_ACCESS", "ALLOWED_HOSTS", "CORS_ORIGINS", "ROOT_PATH"}
    assert {name for name, value in given.items() if not value} == empty


def test_env_example_has_three_groups() -> None:
    headings = re.findall(r"^# -+ (\w+) -+$", (CHECKOUT / ".env.example").read_text(), re.MULTILINE)
    assert headings == ["Essential", "Frequent", "Rare"]
