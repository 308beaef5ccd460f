import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.api.test_docs import OPERATIONS
from tests.support.process import CHECKOUT, Service

pytestmark = pytest.mark.usefixtures("forked")

EXAMPLES = os.environ.get("EXAMPLES", "10")  # of random requests for each operation
# A precondition that fits the schema may fail all the same.
EXPECTED = """
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "3xx", "401", "403", "404", "409", "412", "429", "5xx"]
"""
SCHEMATHESIS = Path(sys.executable).with_name("schemathesis")


def test_every_operation_keeps_what_the_openapi_document_says(service: Service, tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(EXPECTED)
    hooks = {"SCHEMATHESIS_HOOKS": "tests.support.schemathesis_hooks", "PYTHONPATH": str(CHECKOUT)}
    run = subprocess.run(
        [SCHEMATHESIS, "run", f"{service.url}/openapi.json", "--checks=all", "--mode=all",
         "--phases=examples,coverage,fuzzing,stateful", f"--max-examples={EXAMPLES}", "--seed=1",
         "--continue-on-failure", "--generation-database=none", "--no-color"],
        cwd=tmp_path, env={**os.environ, **hooks}, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    print(run.stdout, run.stderr)
    assert run.returncode == 0, "schemathesis found differences: see its output"
    assert f"{len(OPERATIONS)} selected / {len(OPERATIONS)} total" in run.stdout
