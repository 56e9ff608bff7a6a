# SPDX-License-Identifier: Apache-2.0
"""The files that a server's TLS is built from, and digests that change with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Set
from dataclasses import fields, replace
from pathlib import Path

from mailproxy_config.model import CertificateFiles, ServerConfig

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
    """Return every file that TLS of this server reads, with clients and with upstreams, each once.

    The directory of ``ssl_certificate_selector`` is one of them: its list changes with its certificates.
    """
    upstreams = (pair for each in server.with_groups for pair in each.upstream_tls_files)
    files = [path for _, path in (*server.tls_files, *upstreams)]
    if server.tls_is_used and server.chooses_certificates:
        directory = server.ssl_certificate_selector
        chosen = [*server.ssl_certificate, *(selected(directory) if directory is not None else ())]
        files += [path for pair in chosen for path in (pair.certificate, pair.key)]
        files += [directory] if directory is not None else []
    return tuple(dict.fromkeys(files))


def selected(directory: str) -> list[CertificateFiles]:
    """List the pairs below a directory in the order of their names; one that does not exist has none."""
    try:
        names = sorted(name for name in os.listdir(directory) if not name.startswith("."))
    except OSError:
        return []
    found = (
        CertificateFiles(certificate=f"{directory}/{name}/tls.crt", key=f"{directory}/{name}/tls.key")
        for name in names
    )
    return [pair for pair in found if os.path.exists(pair.certificate)]


def fingerprint(server: ServerConfig) -> str:
    """Return a digest of all inputs of ``context.build``: directives, and contents of files.

    Of certificates that clients choose by name it has only whether there are any; see ``named_pairs``.
    """
    base = replace(
        server,
        ssl_certificate=server.default_certificates,
        ssl_certificate_selector="" if server.chooses_certificates else None,
        ssl_reject_handshake=False,
    )
    return _digest_inputs(base, "ssl_", _OF_IDENTITY, base.tls_files)


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


def session_context(server: ServerConfig, chosen: Iterable[bytes] = ()) -> bytes:
    """Return the context in which TLS sessions may be resumed (``SSL_CTX_set_session_id_context``), 32 bytes.

    nginx digests ``MAIL``, the certificates and the CA list.  Here all other
    directives for the verification of clients are digested too, so that a
    session is not resumed after they have changed.  Tickets contain it.

    Args:
        server: The server.
        chosen: Digests of the certificates, if they are not the default ones.
    """
    certificates = [digest.hex() for digest in chosen] or [
        _file_digest(pair.certificate) for pair in server.default_certificates
    ]
    rules = (f"{server.ssl_verify_client}", f"{server.ssl_verify_depth}")
    verified_by = (
        f"{directive}={_file_digest(path)}" for directive, path in server.client_verification_files
    )
    return _digest(("MAIL", *certificates, *rules, *verified_by))


def context_of_server(context: bytes, server: str) -> bytes:
    """Return the context for sessions of one ``server`` block among several behind a listener, 32 bytes.

    So a ticket of another block is a full handshake (CVE-2025-23419).
    """
    return hashlib.sha256(context + server.encode()).digest()


def _ordered(value: object) -> object:
    return sorted(value) if isinstance(value, frozenset) else value


def _file_digest(path: str) -> str:
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest()
    except OSError:
        return _UNREADABLE


def _digest(parts: Iterable[str]) -> bytes:
    return hashlib.sha256("\n".join(parts).encode()).digest()
