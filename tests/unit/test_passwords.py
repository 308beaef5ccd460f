"""Which hashes are taken from elsewhere, and what passwords they are found to be of."""

import bcrypt
import pytest

from service.users.passwords import DUMMY_HASH, hash_password, is_affordable_hash, is_password, needs_rehash

SALT = b"$2b$04$abcdefghijklmnopqrstuu"
OF_HORSE = bcrypt.hashpw(b"correct horse", SALT).decode()
TAIL = DUMMY_HASH.partition("p=1")[2]


def argon2id(parameters: str) -> str:
    return f"$argon2id$v=19${parameters}{TAIL}"


@pytest.mark.parametrize(
    "stored",
    [
        DUMMY_HASH,
        DUMMY_HASH.replace("v=19", "v=16"),
        argon2id("m=65536,t=3,p=4"),
        argon2id("m=262144,t=4,p=16"),
        argon2id("m=8,t=1,p=1"),
        *(prefix + OF_HORSE[3:] for prefix in ("$2a", "$2b", "$2y")),
        "$2b$14" + OF_HORSE[6:],
    ],
)
def test_hashes_of_other_systems_are_taken(stored: str) -> None:
    assert is_affordable_hash(stored)


@pytest.mark.parametrize(
    "stored",
    [
        "",
        "correct horse",
        "5f4dcc3b5aa765d61d8327deb882cf99",
        DUMMY_HASH.replace("argon2id", "argon2i"),
        DUMMY_HASH[:-30],
        DUMMY_HASH + "\n",
        argon2id("m=262145,t=1,p=1"),
        argon2id("m=262144,t=5,p=1"),
        argon2id("m=19456,t=0,p=1"),
        argon2id("m=19456,t=54,p=1"),
        argon2id("m=31,t=2,p=4"),
        argon2id("m=19456,t=2,p=17"),
        *(prefix + OF_HORSE[3:] for prefix in ("$2", "$2x", "$2c")),
        *(f"$2b${cost}{OF_HORSE[6:]}" for cost in ("03", "15", "31", "4", "99")),
        OF_HORSE[:-1],
        OF_HORSE + "a",
        OF_HORSE[:28] + "b" + OF_HORSE[29:],  # bits after the salt: no system makes this
        OF_HORSE[:-1] + "\u0660",
    ],
)
def test_what_is_no_hash_or_takes_too_long_is_refused(stored: str) -> None:
    assert not is_affordable_hash(stored)
    assert not is_password("correct horse", stored), "and is no error either"


@pytest.mark.parametrize("prefix", ["$2a", "$2b", "$2y"])
def test_a_hash_of_bcrypt_is_verified_and_made_anew(prefix: str) -> None:
    stored = prefix + OF_HORSE[3:]
    assert is_password("correct horse", stored)
    assert not is_password("wrong horse", stored)
    assert needs_rehash(stored)
    assert not needs_rehash(hash_password("correct horse"))


def test_bcrypt_compares_the_first_72_bytes_as_it_always_did() -> None:
    password = "ü" * 50
    stored = bcrypt.hashpw(password.encode()[:72], SALT).decode()
    assert is_password(password, stored)
    assert is_password("ü" * 36, stored)
    assert not is_password("ü" * 35, stored)
    assert not is_password("correct\0horse", OF_HORSE)
