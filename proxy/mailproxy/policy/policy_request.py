# SPDX-License-Identifier: Apache-2.0
"""What a policy server gets about a login: the body of a request, and the hash of the password.

Both are as Dovecot sends them (``auth_policy_request_attributes``, ``auth_policy_hash_truncate``), so
that one policy server sees the same hash for the same password from both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from mailproxy.enums import CLEAR_PASSWORD_METHODS, Method
from mailproxy.protocols.types import AuthRequest, Client, Credentials, PolicyFacts, Secret
from mailproxy_config.model import Protocol
from mailproxy_config.policy_server import HashMech

_DIGESTS: Final[Mapping[HashMech, Callable[[bytes], Any]]] = {
    HashMech.SHA256: hashlib.sha256,
    HashMech.SHA512: hashlib.sha512,
}
_MAPPED: Final = "::ffff:"
_TRUTH: Final = {True: "true", False: "false"}


def password_hash(
    nonce: Secret, credentials: Credentials, mech: HashMech = HashMech.SHA256, bits: int = 12
) -> str:
    """Hash a password: the first ``bits`` bits of H(nonce, user, NUL, password), as a number in hexadecimal.

    The number has as many bytes as its bits need: 12 bits are ``0000`` to ``0fff``.  Without a password
    in clear text (tokens, APOP, CRAM-MD5, EXTERNAL), the empty password is hashed.

    Args:
        nonce: The value of ``nonce_file``.
        credentials: The client's.
        mech: ``hash_mech``.
        bits: ``hash_truncate``; 0 for the whole hash.
    """
    secret = credentials.password if credentials.method in CLEAR_PASSWORD_METHODS else None
    password = b"" if secret is None else secret.reveal()
    digest = _DIGESTS[mech](b"%b%b\0%b" % (nonce.reveal(), credentials.user, password)).digest()
    if not bits:
        return str(digest.hex())
    number = int.from_bytes(digest, "big") >> (8 * len(digest) - bits)
    return number.to_bytes((bits + 7) // 8, "big").hex()


def is_asked_about(request: AuthRequest) -> bool:
    """Return whether a policy server can judge this login: it has a user, and its client an IP address."""
    return request.credentials.method is not Method.NONE and not request.client.address.startswith("unix:")


def render_policy_request(protocol: Protocol, request: AuthRequest, facts: PolicyFacts) -> bytes:
    """Return the body of ``command=allow``: JSON with the fields of Dovecot, in their order."""
    client = request.client
    user = facts.user or request.credentials.user  # of a token without a user, once it is validated
    return (
        f'{{"device_id":"","fail_type":"","login":{_text(user)},"protocol":"{protocol}",'
        f'"pwhash":"{facts.password_hash}","remote":{json.dumps(_remote(client))},'
        f'"session_id":{json.dumps(client.session_id)},"tls":{_TRUTH[_uses_tls(client)]}}}'
    ).encode()


def render_policy_report(
    protocol: Protocol, request: AuthRequest, facts: PolicyFacts, *, success: bool
) -> bytes:
    """Return the body of ``command=report``: the same, with the result of the login."""
    result = f',"success":{_TRUTH[success]},"policy_reject":{_TRUTH[facts.is_refused]}}}'
    return render_policy_request(protocol, request, facts)[:-1] + result.encode()


def _text(user: bytes) -> str:
    return json.dumps(user.decode("utf-8", "backslashreplace"))


def _remote(client: Client) -> str:
    """Return an IPv4 address as such, also where the listener is one of IPv6."""
    address = client.address
    mapped = address.removeprefix(_MAPPED)
    return mapped if "." in mapped else address


def _uses_tls(client: Client) -> bool:
    """Return whether the connection is encrypted: that of the original client, where a proxy named it."""
    received = client.received
    if received is not None and received.transport:
        return received.transport == b"TLS"
    return client.tls is not None
