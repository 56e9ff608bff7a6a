# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
from typing import Final

import pytest

from mailproxy.users.password_hash import HashKind, dummy_hash, hash_cost, verify_password
from support.needs import Needs

SHA512: Final = (
    b"$6$saltstring$svn8UoSVapNtMuq1ukKS4tPQd8iKwSMHWjl/O817G3uBnIFNjnQJuesI68u4OTLiBFdcbYEdFCoEOfaS35inz1"
)
ARGON2ID: Final = b"$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc"
BCRYPT: Final = b"CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"
# Published by the authors of the algorithms.
VECTORS: Final = [
    (SHA512, b"Hello world!"),
    (
        b"$6$rounds=10000$saltstringsaltst$OW1/O6BYHV6BcXZu8QVeXbDWra3Oeqh0sbHbbMCVNSnCM/UrjmM0Dp8vOuZeHBy"
        b"/YTBmSK6H9qs/y3RnOaw5v.",
        b"Hello world!",
    ),
    (ARGON2ID, b"password"),
    *((b"$2%b$05$%b" % (letter, BCRYPT), b"U*U") for letter in (b"a", b"b", b"y")),
]


@pytest.mark.parametrize(("hashed", "password"), VECTORS)
def test_published_hash_belongs_to_its_password_only(hashed: bytes, password: bytes) -> None:
    hash_cost(hashed)
    assert verify_password(hashed, password)
    for other in (password + b"x", password[:-1], b"", password + b"\0", b"x" * 512):
        assert not verify_password(hashed, other)


@pytest.mark.parametrize(
    ("command", "kind", "numbers"),
    [
        (("htpasswd", "-niB", "bob"), HashKind.BCRYPT, (5,)),
        (("htpasswd", "-niB", "-C", "6", "bob"), HashKind.BCRYPT, (6,)),
        (("mkpasswd", "-s", "-m", "sha-512"), HashKind.SHA512_CRYPT, (5000,)),
        (("mkpasswd", "-s", "-m", "sha-512", "-R", "6000"), HashKind.SHA512_CRYPT, (6000,)),
        (("mkpasswd", "-s", "-m", "bcrypt"), HashKind.BCRYPT, (5,)),
        (("openssl", "passwd", "-6", "-stdin"), HashKind.SHA512_CRYPT, (5000,)),
    ],
)
def test_hash_of_program_is_verified(
    needs: Needs, command: tuple[str, ...], kind: HashKind, numbers: tuple[int, ...]
) -> None:
    for password in (b"correct-horse", "pässwörd ✓".encode(), b"p" * 72):
        made = subprocess.run(
            (needs(command[0]), *command[1:]), input=password, capture_output=True, check=True
        )
        hashed = made.stdout.strip().removeprefix(b"bob:")
        assert (hash_cost(hashed).kind, hash_cost(hashed).numbers) == (kind, numbers)
        assert verify_password(hashed, password)
        assert not verify_password(hashed, b"q" + password[1:])


def test_bcrypt_ignores_what_is_after_72_bytes(needs: Needs) -> None:
    command = (needs("htpasswd"), "-niB", "bob")
    made = subprocess.run(command, input=b"p" * 100, capture_output=True, check=True).stdout
    hashed = made.strip().removeprefix(b"bob:")
    assert verify_password(hashed, b"p" * 100)
    assert verify_password(hashed, b"p" * 72)
    assert not verify_password(hashed, b"p" * 71)


@pytest.mark.parametrize(
    ("hashed", "reason"),
    [
        (b"$apr1$abcdefgh$" + b"a" * 22, "is MD5, which is too weak"),
        (b"$1$abcdefgh$" + b"a" * 22, "is MD5, which is too weak"),
        (b"$5$abcdefgh$" + b"a" * 43, "is sha256-crypt, which is not accepted"),
        (b"{SHA}fEqNCco3Yq9h5ZUglD3CZJT4lBs=", "is too weak"),
        (b"{PLAIN}secret", "is too weak"),
        (b"{SHA512-CRYPT}" + SHA512, "has a scheme in braces before it: remove the braces"),
        (b"$y$j9T$abc$def", "is scrypt or yescrypt, which is not accepted"),
        (b"rl0uE5qnqSqaE", "is neither bcrypt nor sha512-crypt nor argon2id"),
        (b"secret", "is neither bcrypt nor sha512-crypt nor argon2id"),
        (b"", "has no password"),
        (b"!", "has no password"),
        (b"$2x$05$" + BCRYPT, "is an old variant of bcrypt"),
        (b"$2b$05$" + BCRYPT[:-1], "is no complete bcrypt hash"),
        (b"$2b$04$" + BCRYPT, "has cost 4, which is too weak: 5 to 14"),
        (b"$2b$15$" + BCRYPT, "has cost 15, which is too expensive: 5 to 14"),
        (SHA512[:-1], "is no complete sha512-crypt hash"),
        (SHA512.replace(b"$6$", b"$6$rounds=4999$"), "has rounds 4999, which is too weak: 5000 to 200000"),
        (SHA512.replace(b"$6$", b"$6$rounds=999999999$"), "has rounds 999999999, which is too expensive"),
        (ARGON2ID.replace(b"argon2id", b"argon2i"), "is argon2i or argon2d, which is not accepted"),
        (ARGON2ID.replace(b"v=19", b"v=16"), "is no complete argon2id hash of version 19"),
        (ARGON2ID.replace(b"m=65536", b"m=65537"), "has m 65537, which is too expensive: 4096 to 65536"),
        (ARGON2ID.replace(b"m=65536", b"m=1024"), "has m 1024, which is too weak: 4096 to 65536"),
        (ARGON2ID.replace(b"t=2", b"t=11"), "has t 11, which is too expensive: 1 to 10"),
        (ARGON2ID.replace(b"p=1", b"p=5"), "has p 5, which is too expensive: 1 to 4"),
        (ARGON2ID + b"A" * 300, "is no complete argon2id hash"),
    ],
)
def test_other_hash_is_refused_with_what_to_do(hashed: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match="htpasswd -nB -C 10 USER") as error:
        hash_cost(hashed)
    assert str(error.value).startswith(f"the hash {reason}")
    assert not hashed or hashed[-20:].decode() not in str(error.value)


@pytest.mark.parametrize("hashed", [each for each, _ in VECTORS])
def test_dummy_costs_as_much_and_has_no_password(hashed: bytes) -> None:
    dummy = dummy_hash(hashed)
    assert hash_cost(dummy) == hash_cost(hashed)
    assert (len(dummy), dummy != hashed) == (len(hashed), True)
    assert not verify_password(dummy, b"Hello world!")
