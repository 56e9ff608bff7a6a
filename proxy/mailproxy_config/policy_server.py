# SPDX-License-Identifier: Apache-2.0
"""The value of ``auth_policy_server``."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class HashMech(StrEnum):
    """How the hash of a password is made for a policy server."""

    SHA256 = "Sha256"
    SHA512 = "Sha512"


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthPolicyServer:
    """``auth_policy_server``: a server that is asked about logins, with Dovecot's protocol.

    ``nonce_file`` and ``header_file`` hold secrets; one line end at their end is removed.
    ``hash_truncate`` is in bits, 0 for the whole hash; ``timeout`` is in seconds.
    """

    url: str
    nonce_file: str
    header_name: str = ""
    """Empty: no header."""
    header_file: str | None = None
    hash_mech: HashMech = HashMech.SHA256
    hash_truncate: int = 12
    timeout: float = 2.0
    check_before: bool = True
    check_after: bool = True
    report: bool = True
    reject_on_fail: bool = False

    @property
    def files(self) -> tuple[str, ...]:
        """Paths of the files with its secrets."""
        return tuple(path for path in (self.nonce_file, self.header_file) if path is not None)
