"""Every name that the service takes from inside a dependency: why, where, and whether it is still there.

An upgrade that renames one fails here, and not under load.
"""

import ast
import importlib
import inspect
import textwrap
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from service.extras.http.coalesced_response import CoalescedResponse
from tests.house import SERVICE


def package(node: ast.AST) -> str:
    """Return the package that a statement imports from."""
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0]
    return node.names[0].name.partition(".")[0] if isinstance(node, ast.Import) else ""


@cache
def trees() -> dict[Path, ast.Module]:
    """Return every file of the service, parsed."""
    return {file: ast.parse(file.read_text()) for file in SERVICE.rglob("*.py")}


HTTP = SERVICE / "extras" / "http"

RequestResponseCycle = CoalescedResponse.__mro__[1]  # in its module protocol.py replaces it

# Names without an underscore that uvicorn does not document.
UVICORN: dict[type, dict[str, str]] = {
    HttpToolsProtocol: {
        "app_state": "holds HttpState",
        "connection_lost": "extended: gives back what the connection held",
        "connection_made": "extended: limits how many there are",
        "cycle": "the request in progress and its response",
        "data_received": "replaced: one message at a time",
        "flow": "see FlowControl",
        "headers": "checked before the application is started; freed between requests",
        "loop": "has the timers",
        "on_header": "extended: leaves out trailer fields",
        "on_headers_complete": "extended: checks the head, and says when it came",
        "on_message_complete": "extended: ends the body",
        "on_response_complete": "replaced: begins on the next request",
        "parser": "is fed; knows the version",
        "pause_writing": "extended: limits the bytes that are not read",
        "resume_writing": "likewise",
        "scope": "gets the Arrival; freed between requests",
        "server_state": "see ServerState",
        "shutdown": "extended: answers one more request",
        "timeout_keep_alive": "seconds; uvicorn's own timer is not used",
        "transport": "is written to and closed",
    },
    RequestResponseCycle: {
        "disconnected": "whether the client has left",
        "flow": "as in the protocol",
        "keep_alive": "whether another request may follow",
        "message_event": "wakes an application that reads a body",
        "response_started": "whether the head was sent",
        "scope": "as in the protocol",
        "send": "extended: keeps the head until the body comes",
        "transport": "replaced while a response is put together",
        "waiting_for_100_continue": "cleared when the body is rejected",
    },
    FlowControl: {
        "pause_reading": "while a client waits",
        "pause_writing": "by uvicorn's own pause_writing",
        "resume_reading": "afterwards",
        "resume_writing": "by uvicorn's own resume_writing",
        "write_paused": "whether the client reads",
    },
    ServerState: {
        "default_headers": "go into a response that no application makes",
        "total_requests": "for --limit-max-requests",
    },
    Multiprocess: {
        "keep_subprocess_alive": "extended: closes our copy of a pipe",
        "processes": "the workers",
        "should_exit": "is set by a signal at once",
        "sockets": "are closed when the workers stop",
        "terminate_all": "extended: stops listening first",
    },
    Process: {
        "child_conn": "the copy of the pipe",
        "exitcode": "whether a worker is there to drain",
        "pid": "the worker that drains",
    },
}

# Names with an underscore, by the file that uses them. Outside service/extras/http/ only what is documented.
PRIVATE = {
    ("extras/http/coalesced_response.py", "uvicorn._types"): "the type of `send`, for which there is no public name",
    ("database/watchdog.py", "sys._current_frames"): "documented in spite of its name",
    ("telemetry/log.py", "logging._srcfile"): "documented in the logging HOWTO, Optimization",
}


def defined(names: Iterable[type]) -> set[str]:
    """Return the methods of classes, and what they assign to `self`."""
    found = set()
    for each in names:
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
    return {name for name in found if not name.startswith("__")}


def is_self(node: ast.expr) -> bool:
    is_super = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "super"
    return is_super or (isinstance(node, ast.Name) and node.id in {"self", "cls"})


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@pytest.mark.parametrize(
    ("owner", "name"), [(owner, name) for owner, names in UVICORN.items() for name in names],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)  # fmt: skip
def test_a_name_of_uvicorn_is_still_there(owner: type, name: str) -> None:
    assert name in defined([owner])


def test_uvicorn_looks_its_response_up_in_the_module_where_the_protocol_replaces_it() -> None:
    calls = [node for node in ast.walk(ast.parse(inspect.getsource(httptools_impl))) if isinstance(node, ast.Call)]
    assert [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "RequestResponseCycle"]


def test_every_name_of_uvicorn_that_is_used_is_in_the_table() -> None:
    used = set()
    files = [tree for file, tree in trees().items() if HTTP in file.parents]
    importers = [tree for tree in files if "uvicorn" in map(package, ast.walk(tree))]
    for node in (node for tree in importers for node in ast.walk(tree)):
        if isinstance(node, ast.Attribute) and not isinstance(node.value, ast.Constant):  # such as b"".join
            used.add(node.attr)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            used.add(node.name)
    names = {name for name in used & defined(UVICORN) if not is_private(name)}
    assert names == {name for names in UVICORN.values() for name in names}


def private_names(tree: ast.AST) -> Iterator[str]:
    """Return the private names that a file uses and that are not its own, nor those of a class of the service."""
    own = set(own_names(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if node.attr not in (inherited() if is_self(node.value) else own):
                yield ast.unparse(node)
        elif isinstance(node, ast.ImportFrom):
            modules = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            yield from (name for name in modules if is_private(name.rpartition(".")[2]))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if any(map(is_private, alias.name.split("."))))


def own_names(tree: ast.AST) -> Iterator[str]:
    """Return the names that a file gives: its functions, classes and variables, and what it assigns to `self`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            yield node.attr


@cache
def inherited() -> set[str]:
    """Return the names that any file of the service gives."""
    return {name for tree in trees().values() for name in own_names(tree)}


def test_only_the_known_private_names_are_used() -> None:
    found = {(str(file.relative_to(SERVICE)), name) for file, tree in trees().items() for name in private_names(tree)}
    assert found == set(PRIVATE)


@pytest.mark.parametrize("name", [name for _, name in PRIVATE])
def test_a_private_name_is_still_there(name: str) -> None:
    module, _, last = name.rpartition(".")
    assert hasattr(importlib.import_module(module), last) or importlib.import_module(name)
