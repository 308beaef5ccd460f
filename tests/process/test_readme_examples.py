import re
import shlex
import subprocess
import sys

from tests.api.test_readme import READMES
from tests.support.process import CHECKOUT


def test_every_make_of_a_readme_with_arguments_finds_tests() -> None:
    text = "".join((CHECKOUT / name).read_text() for name in READMES)
    examples = set(re.findall(r"\bmake (?:test|quick) ARGS=('[^']+'|[^\s`]+)", text))
    assert len(examples) > 1
    for example in examples:
        arguments = shlex.split(example.strip("'"))
        if not any(argument.startswith("tests/") for argument in arguments):
            arguments.append("tests/api/test_readme.py")  # it takes seconds to collect all of them
        collect = [sys.executable, "-m", "pytest", "--collect-only", "--quiet", *arguments]
        found = subprocess.run(collect, cwd=CHECKOUT, capture_output=True, text=True, check=False)
        assert found.returncode == 0, f"{example}: {found.stdout}"  # 4: there is no such file; 5: no such test
