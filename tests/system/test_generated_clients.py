"""Clients that others generate from the OpenAPI document: they compile, and do a round with the running service.

Each creates users with generated ids, reads two pages, changes, is refused, deletes, and asks a service that is not
ready.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.polling import until
from tests.support.postgres import Cluster, installed
from tests.support.process import CHECKOUT, Service

CLIENTS = Path(__file__).parent / "clients"
NODE = CHECKOUT / ".venv" / "clients" / "node_modules"  # make test-system installs it
BIN = Path(sys.executable).parent
OUTAGE = {"CONNECT_TIMEOUT": "1", "WORKER_THREADS": "2"}


@pytest.fixture(scope="module")
def urls() -> Iterator[tuple[str, str]]:
    """Return the URLs of a service that works, and of one whose database has gone."""
    with (
        Cluster(installed()["18"]) as kept,
        Cluster(installed()["18"]) as lost,
        Service({**kept.create_database().environment, "WORKER_THREADS": "2"}) as service,
        Service({**lost.create_database().environment, **OUTAGE}) as failed,
    ):
        lost.stop()
        until(lambda: failed.client.get("/readyz").status_code == 503, "it notices")
        yield service.url, failed.url


@pytest.fixture(scope="module")
def document(urls: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("openapi") / "openapi.json"
    path.write_text(httpx.get(f"{urls[0]}/openapi.json").text)
    return path


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    done = subprocess.run(
        command, cwd=cwd, env={"PATH": f"{BIN}:/usr/bin:/bin", "HOME": str(cwd), **environment},
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def test_a_client_in_typescript(urls: tuple[str, str], document: Path, tmp_path: Path) -> None:
    (tmp_path / "node_modules").symlink_to(NODE)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    shutil.copy(CLIENTS / "round.ts", tmp_path)
    run("node_modules/.bin/openapi-typescript", document, "-o", "api.d.ts", cwd=tmp_path)
    strict = "--strict --noUncheckedIndexedAccess --target es2022 --module nodenext --skipLibCheck false"
    run("node_modules/.bin/tsc", *strict.split(), "round.ts", cwd=tmp_path)
    run("node", "round.js", *urls, cwd=tmp_path)


def test_a_client_in_python(urls: tuple[str, str], document: Path, tmp_path: Path) -> None:
    run(BIN / "openapi-python-client", "generate", "--path", document, "--output-path", "out", cwd=tmp_path)
    run(sys.executable, CLIENTS / "round.py", *urls, cwd=tmp_path, PYTHONPATH=str(tmp_path / "out"))


def test_a_client_in_go(urls: tuple[str, str], document: Path, tmp_path: Path) -> None:
    without = "apiTests=false,modelTests=false,apiDocs=false,modelDocs=false"
    run(
        BIN / "openapi-generator-cli", "generate", "-g", "go", "-i", document, "-o", tmp_path / "client",
        f"--global-property=apis,models,supportingFiles,{without}", cwd=tmp_path,
    )  # fmt: skip
    (tmp_path / "client" / "go.mod").unlink()
    (tmp_path / "go.mod").write_text("module example.com/users\n")
    shutil.copy(CLIENTS / "round.go", tmp_path / "main.go")
    run("go", "build", "-o", "round", ".", cwd=tmp_path, GOPROXY="off", GOFLAGS="-mod=mod")
    run(tmp_path / "round", *urls, cwd=tmp_path)
