"""Which programs fit a server."""

import os
from pathlib import Path

import pytest

from service.extras import embedded
from service.extras.client_programs import ProgramError, programs_for


def test_the_oldest_programs_that_are_not_older_than_the_server_are_chosen() -> None:
    assert programs_for(16).parent.name != "pginstall18"
    assert programs_for(18) == embedded.programs()


def test_without_programs_that_fit_the_server_the_error_says_what_to_install() -> None:
    with pytest.raises(ProgramError, match=r"psql, pg_dump, pg_restore of PostgreSQL 99 .*postgresql-client-99"):
        programs_for(99)
    assert (programs_for(99, older=True) / "psql").exists()


def test_programs_that_do_not_run_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("psql", "pg_dump", "pg_restore"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert programs_for(18) == embedded.programs()
