"""The file of the API keys: what it takes, and what happens when it changes."""

import hashlib
import re
import zlib
from pathlib import Path

import pytest

from service.settings import SettingsError
from service.web import api_keys
from service.web.api_keys import ALPHABET, GRANTS, ApiKeys, add_key, make_key

DIGEST = hashlib.sha256(b"a key").hexdigest()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(api_keys, "CHECK_INTERVAL", 0)
    return tmp_path / "api-keys"


def names(keys: ApiKeys, *given: str) -> list[str]:
    """Return whose the given keys are; empty for nobody's."""
    return [caller.name if (caller := keys.caller(key.encode())) else "" for key in given]


def test_a_key_has_160_random_bits_a_prefix_and_a_checksum() -> None:
    made = {make_key() for _ in range(100)}
    assert len(made) == 100
    for key in made:
        found = re.fullmatch(r"users_([0-9A-Za-z]{27})([0-9A-Za-z]{6})", key)
        assert found
        number = 0
        for character in found[2]:
            number = number * 62 + ALPHABET.index(character)
        assert number == zlib.crc32(found[1].encode())
    assert 62**27 > 2**160


def test_the_file_holds_the_hash_of_a_key_and_only_its_owner_reads_it(path: Path) -> None:
    path = path.parent / "new folder" / "api-keys"
    key = add_key(path, "ada", "read")
    assert path.read_text() == f"ada read {hashlib.sha256(key.encode()).hexdigest()}\n"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_key_is_added_behind_a_line_without_an_end(path: Path) -> None:
    path.write_text(f"ada read {DIGEST}")
    key = add_key(path, "grace", "write")
    assert names(ApiKeys(path), "a key", key) == ["ada", "grace"]


@pytest.mark.parametrize("name", ["", "a b", "a#b", "a\nb", "ä", "x" * 65, '"', "ada"])
def test_a_name_that_is_taken_or_no_name_is_refused(path: Path, name: str) -> None:
    path.write_text(f"ada read {DIGEST}\n")
    with pytest.raises(SettingsError):
        add_key(path, name, "read")
    assert path.read_text() == f"ada read {DIGEST}\n"


@pytest.mark.parametrize(
    "line",
    [
        "ada", "ada read", f"ada {DIGEST}", f"ada admin {DIGEST}", f"ada READ {DIGEST}", f"ada read {DIGEST[:-1]}",
        f"ada read {DIGEST}0", f"ada read {DIGEST.upper()}", f"ada read, write {DIGEST}", f"a da read {DIGEST}",
        f"ada read a key {DIGEST}", "\0", "ada read \udcff", f"ada read {DIGEST} write {DIGEST}",
    ],
)  # fmt: skip
def test_a_malformed_line_gives_nothing_and_takes_nothing(
    path: Path, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    path.write_bytes(f"# keys\n{line}\n".encode("utf-8", "surrogateescape"))
    key = add_key(path, "grace", "write")
    keys = ApiKeys(path)
    assert names(keys, "a key", "", key) == ["", "", "grace"]
    assert "line 2" in caplog.text
    assert DIGEST[:16] not in caplog.text


def test_a_change_is_seen_at_the_next_look(path: Path) -> None:
    ada, grace = add_key(path, "ada", "read"), add_key(path, "grace", "operator")
    keys = ApiKeys(path)
    assert names(keys, ada, grace) == ["ada", "grace"]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[1])
    assert names(keys, ada, grace) == ["", "grace"]
    moved = path.with_name("new")  # as editors write
    moved.write_text(lines[0])
    moved.rename(path)
    assert names(keys, ada, grace) == ["ada", ""]
    path.write_text(lines[0].replace(" read ", " write "))
    caller = keys.caller(ada.encode())
    assert caller
    assert caller.scopes == GRANTS["write"]


def test_without_the_file_nobody_has_a_key_until_it_is_back(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ada = add_key(path, "ada", "read")
    keys = ApiKeys(path)
    content = path.read_bytes()
    path.unlink()
    assert names(keys, ada) == names(keys, ada) == [""]
    assert caplog.text.count("does not exist") == 1
    path.write_bytes(content)
    assert names(keys, ada) == ["ada"]


def test_a_file_that_cannot_be_read_leaves_the_keys_as_they_were(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ada = add_key(path, "ada", "read")
    keys = ApiKeys(path)
    content = path.read_bytes()
    path.unlink()
    path.mkdir()
    assert names(keys, ada) == names(keys, ada) == ["ada"]
    assert caplog.text.count("cannot be read") == 1
    assert names(ApiKeys(path), ada) == [""]
    path.rmdir()
    path.write_bytes(content.replace(b"ada", b"grace"))  # of another size, as it may have the same time
    assert names(keys, ada) == ["grace"]


def test_a_file_that_others_may_read_is_reported(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    add_key(path, "ada", "read")
    ApiKeys(path)
    assert not caplog.text
    path.chmod(0o640)
    ApiKeys(path)
    assert "600" in caplog.text
