# SPDX-License-Identifier: Apache-2.0
"""The files that a server's TLS is built from, and digests that change with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Set
from dataclasses import fields
from pathlib import Path

from mailproxy_config.model import ServerConfig

_UNREADABLE = "unreadable"
_OF_IDENTITY = frozenset(
    {
        "name",
        "protocol",
        "proxy_protocol",
        "proxy_id",
        "proxy_pop3_xclient",
        "xclient",
        "xclient_mode",
        "auth_http_variables",
        "auth_http_facts",
        "auth_http_overrides",
    }
)
"""Directives that decide what a connection notes about its client."""


def tls_files(server: ServerConfig) -> tuple[str, ...]:
    """Return every file that TLS of this server reads, with clients and with upstreams, each once."""
    return tuple(dict.fromkeys(path for _, path in (*server.tls_files, *server.upstream_tls_files)))


def fingerprint(server: ServerConfig) -> str:
    """Return a digest of all inputs of ``context.build``: directives, and contents of files."""
    return _digest_inputs(server, "ssl_", _OF_IDENTITY, server.tls_files)


def upstream_fingerprint(server: ServerConfig) -> str:
    """Return a digest of all inputs of ``upstream_context.build``."""
    return _digest_inputs(server, "proxy_ssl", {"name"}, server.upstream_tls_files)


def _digest_inputs(
    server: ServerConfig, prefix: str, others: Set[str], files: Iterable[tuple[str, str]]
) -> str:
    directives = (
        f"{field.name}={_ordered(getattr(server, field.name))!r}"
        for field in fields(server)
        if field.name.startswith(prefix) or field.name in others
    )
    contents = (_file_digest(path) for path in dict.fromkeys(path for _, path in files))
    return _digest(("mailproxy", *directives, *contents)).hex()


def session_context(server: ServerConfig) -> bytes:
    """Return the context in which TLS sessions may be resumed (``SSL_CTX_set_session_id_context``), 32 bytes.

    nginx digests ``MAIL``, the certificates and the CA list.  Here all other
    directives for the verification of clients are digested too, so that a
    session is not resumed after they have changed.
    """
    certificates = (_file_digest(pair.certificate) for pair in server.ssl_certificate)
    rules = (f"{server.ssl_verify_client}", f"{server.ssl_verify_depth}")
    verified_by = (
        f"{directive}={_file_digest(path)}" for directive, path in server.client_verification_files
    )
    return _digest(("MAIL", *certificates, *rules, *verified_by))


def _ordered(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return _UNREADABLE


def _digest(parts: Iterable[str]) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
