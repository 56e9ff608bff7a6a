# SPDX-License-Identifier: Apache-2.0
"""Hashes of passwords: which are accepted, and how a password is verified.

Accepted are bcrypt (``$2a$``, ``$2b$``, ``$2y$``), sha512-crypt (``$6$``) and argon2id.  Their costs are
limited in both directions: a cheap hash protects no password, and an expensive one would let a few
clients without a password occupy the processors and the memory of a worker.

bcrypt and argon2id (cryptography) release the interpreter's lock while they compute.  sha512-crypt
(libpass) is computed in Python and does not; ``docs/static-users.md`` has the figures.
"""

from __future__ import annotations

import base64
import re
import secrets
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

MAX_HASH: Final = 255
"""Bytes of a hash."""
BCRYPT_COSTS: Final = range(5, 15)
"""Binary logarithms of rounds; ``htpasswd -B`` has 5 by default."""
SHA512_ROUNDS: Final = range(5000, 200_001)
"""5000 is the default of the format, without ``rounds=``."""
ARGON2_MEMORY: Final = range(4096, 65_537)
"""``m``: KiB of memory while a password is verified."""
ARGON2_PASSES: Final = range(1, 11)
"""``t``."""
ARGON2_LANES: Final = range(1, 5)
"""``p``: as many threads compute one hash."""
MAX_BCRYPT_PASSWORD: Final = 72
"""Bytes of a password that bcrypt uses; ``htpasswd`` ignores the others too."""

FIX: Final = 'make one with "htpasswd -nB -C 10 USER" or "mkpasswd -m sha-512"'

_BCRYPT: Final = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{53}")
_SHA512: Final = re.compile(
    rb"\$6\$(?:rounds=([1-9][0-9]{0,8})\$)?([./A-Za-z0-9]{1,16})\$[./A-Za-z0-9]{85}[./01]"
)
_ARGON2ID: Final = re.compile(
    rb"\$argon2id\$v=19\$m=([1-9][0-9]{0,8}),t=([1-9][0-9]{0,8}),p=([1-9][0-9]{0,8})"
    rb"\$([A-Za-z0-9+/]{11,64})\$([A-Za-z0-9+/]{22,86})"
)
_ALPHABET: Final = b"./0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_REFUSED: Final = (
    (rb"\{[A-Za-z0-9.-]+\}(?=\$)", "has a scheme in braces before it: remove the braces and what is in them"),
    (rb"\$apr1\$|\$1\$", "is MD5, which is too weak"),
    (rb"\{(?:S?SHA|MD5|SMD5|CRYPT|PLAIN|CLEAR)", "is too weak"),
    (rb"\$5\$", "is sha256-crypt, which is not accepted"),
    (rb"\$7\$|\$g?y\$", "is scrypt or yescrypt, which is not accepted"),
    (rb"\$argon2(?:i|d)\$", "is argon2i or argon2d, which is not accepted: use argon2id"),
    (rb"\$2[aby]\$", "is no complete bcrypt hash"),
    (rb"\$2", "is an old variant of bcrypt, which is not accepted"),
    (rb"\$6\$", "is no complete sha512-crypt hash"),
    (rb"\$argon2id\$", "is no complete argon2id hash of version 19"),
    (rb"[*!x]?$", "has no password, so that the user could never log in: remove the line"),
)
_UNKNOWN: Final = "is neither bcrypt nor sha512-crypt nor argon2id"


class HashKind(StrEnum):
    """A way to hash passwords."""

    BCRYPT = "bcrypt"
    SHA512_CRYPT = "sha512-crypt"
    ARGON2ID = "argon2id"


@dataclass(frozen=True, slots=True)
class HashCost:
    """What the duration of a verification depends on: the numbers of the hash, in their order."""

    kind: HashKind
    numbers: tuple[int, ...]


def hash_cost(text: bytes) -> HashCost:
    """Check a hash.

    Args:
        text: The hash.

    Raises:
        ValueError: It is not accepted.  The message has no part of the hash.
    """
    if len(text) <= MAX_HASH:
        if found := _BCRYPT.fullmatch(text):
            cost = _within("cost", found[1], BCRYPT_COSTS)
            return HashCost(HashKind.BCRYPT, (cost,))
        if found := _SHA512.fullmatch(text):
            rounds = _within("rounds", found[1] or b"5000", SHA512_ROUNDS)
            return HashCost(HashKind.SHA512_CRYPT, (rounds,))
        if found := _ARGON2ID.fullmatch(text):
            return HashCost(HashKind.ARGON2ID, _argon2_numbers(found))
    reason = next((reason for pattern, reason in _REFUSED if re.match(pattern, text)), _UNKNOWN)
    raise ValueError(f"the hash {reason}; {FIX}")


def _argon2_numbers(found: re.Match[bytes]) -> tuple[int, ...]:
    limits = (("m", ARGON2_MEMORY), ("t", ARGON2_PASSES), ("p", ARGON2_LANES))
    numbers = tuple(_within(name, found[index], limit) for index, (name, limit) in enumerate(limits, 1))
    for encoded in (found[4], found[5]):
        if len(encoded) % 4 == 1:
            raise ValueError(f"the hash is no complete argon2id hash of version 19; {FIX}")
    return numbers


def _within(name: str, text: bytes, limits: range) -> int:
    number = int(text)
    if number not in limits:
        problem = "too weak" if number < limits.start else "too expensive"
        raise ValueError(
            f"the hash has {name} {number}, which is {problem}: {limits.start} to {limits.stop - 1} are "
            f"accepted; {FIX}"
        )
    return number


def dummy_hash(like: bytes) -> bytes:
    """Return a hash of no password, whose verification takes as long.

    Args:
        like: A hash that is accepted.
    """
    head, _, digest = like.rpartition(b"$")
    if like.startswith(b"$2"):
        return head + b"$" + digest[:22] + _random(31)
    if like.startswith(b"$6"):
        return head + b"$" + _random(85) + b"."
    return head + b"$" + base64.b64encode(secrets.token_bytes(len(_decode(digest)))).rstrip(b"=")


def _random(length: int) -> bytes:
    return bytes(secrets.choice(_ALPHABET) for _ in range(length))


def verify_password(text: bytes, password: bytes) -> bool:
    """Return whether a password belongs to a hash; takes up to some seconds, in any thread.

    Args:
        text: A hash that ``hash_cost`` accepts.
        password: The password; at most 512 bytes.
    """
    if b"\0" in password:
        return False  # no program makes such a hash, and C libraries would end the password there
    if text.startswith(b"$2"):
        return _verify_bcrypt(text, password)
    if text.startswith(b"$6"):
        return _verify_sha512(text, password)
    return _verify_argon2id(text, password)


# Libraries are imported where they are needed: not every worker uses each of them.


def _verify_bcrypt(text: bytes, password: bytes) -> bool:
    from bcrypt import checkpw  # noqa: PLC0415

    return checkpw(password[:MAX_BCRYPT_PASSWORD], text)


def _verify_sha512(text: bytes, password: bytes) -> bool:
    from passlib.hash import sha512_crypt  # noqa: PLC0415 - of the distribution libpass

    return bool(sha512_crypt.verify(password, text))


def _verify_argon2id(text: bytes, password: bytes) -> bool:
    from cryptography.exceptions import InvalidKey  # noqa: PLC0415
    from cryptography.hazmat.primitives.kdf.argon2 import Argon2id  # noqa: PLC0415

    found = _ARGON2ID.fullmatch(text)
    assert found is not None  # noqa: S101 -- it is accepted
    memory, passes, lanes = (int(found[index]) for index in (1, 2, 3))
    salt, digest = _decode(found[4]), _decode(found[5])
    derivation = Argon2id(salt=salt, length=len(digest), iterations=passes, lanes=lanes, memory_cost=memory)
    try:
        derivation.verify(password, digest)
    except InvalidKey:
        return False
    return True


def _decode(text: bytes) -> bytes:
    """Decode base64 without padding."""
    return base64.b64decode(text + b"=" * (-len(text) % 4))
