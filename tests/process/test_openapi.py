import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.web.api_keys import add_key
from tests.api.test_docs import OPERATIONS
from tests.support.postgres import TestDatabase
from tests.support.process import CHECKOUT, Service

pytestmark = pytest.mark.usefixtures("cheap_hashes")

EXAMPLES = os.environ.get("EXAMPLES", "10")  # of random requests for each operation
# A precondition that fits the schema may fail all the same.
EXPECTED = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx"]
"""
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def schemathesis_passes(service: Service, folder: Path, *options: str) -> bool:
    """Return whether all operations do what the document says; print what schemathesis found."""
    (folder / "schemathesis.toml").write_text(EXPECTED)
    hooks = {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(CHECKOUT)}
    run = subprocess.run(
        [SCHEMATHESIS, "run", f"{service.url}/openapi.json", "--checks=all", "--mode=all",
         f"--max-examples={EXAMPLES}", "--seed=1", "--continue-on-failure", "--generation-database=none", "--no-color",
         *options],
        cwd=folder, env={**os.environ, **hooks}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert f"{len(OPERATIONS)} selected / {len(OPERATIONS)} total" in run.stdout
    print(run.stdout, run.stderr)
    return run.returncode == 0


def test_every_operation_keeps_what_the_openapi_document_says(service: Service, tmp_path: Path) -> None:
    assert schemathesis_passes(service, tmp_path, "--phases=coverage")


def test_every_operation_keeps_it_with_a_key_and_refuses_without(database: TestDatabase, tmp_path: Path) -> None:
    file = tmp_path / "api-keys"
    key = add_key(file, "ada", "write")
    with Service(database.environment | {"API_KEYS_FILE": str(file)}) as service:
        assert schemathesis_passes(
            service, tmp_path, f"--header=Authorization: Bearer {key}", "--phases=examples,fuzzing,stateful"
        )
