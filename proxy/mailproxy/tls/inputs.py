# SPDX-License-Identifier: Apache-2.0
"""The files that a server's TLS is made of: which they are, and whether anything about them changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import fields
from pathlib import Path

from mailproxy_config.model import ServerConfig

_UNREADABLE = "unreadable"


def files(server: ServerConfig) -> tuple[str, ...]:
    """Name every file that ``build`` reads for this server, each once; none where TLS is not used.

    As in nginx, what verifies clients is not looked at while ``ssl_verify_client`` is off.
    """
    return tuple(dict.fromkeys(path for _, path in server.tls_files))


def fingerprint(server: ServerConfig) -> str:
    """Digest all that ``build`` depends on: the directives, and what the files hold."""
    directives = (
        f"{field.name}={_ordered(getattr(server, field.name))!r}"
        for field in fields(server)
        if field.name.startswith("ssl_") or field.name in {"name", "protocol", "proxy_protocol"}
    )
    contents = map(_digest, files(server))
    return _digest_of(("mailproxy", *directives, *contents)).hex()


def session_context(server: ServerConfig) -> bytes:
    """Digest what sessions must have in common to be resumed here (``SSL_CTX_set_session_id_context``).

    To nginx's ``MAIL``, certificates and CA list come all the other things a
    client was verified by: a verdict is not older than the rules it rests on.
    """
    certificates = (_digest(pair.certificate) for pair in server.ssl_certificate)
    rules = (f"{server.ssl_verify_client}", f"{server.ssl_verify_depth}")
    verified_by = (f"{directive}={_digest(path)}" for directive, path in server.client_verification_files)
    return _digest_of(("MAIL", *certificates, *rules, *verified_by))


def _ordered(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


def _digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return _UNREADABLE


def _digest_of(parts: Iterable[str]) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
