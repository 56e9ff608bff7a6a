# SPDX-License-Identifier: Apache-2.0
"""The files and digests of a server's TLS."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from mailproxy.tls.inputs import context_of_server, fingerprint, session_context, tls_files
from mailproxy_config.model import (
    CertificateFiles,
    ListenConfig,
    Protocol,
    Seconds,
    ServerConfig,
    StartTls,
    VerifyClient,
)
from support.configs import server


@pytest.fixture
def config(tmp_path: Path) -> ServerConfig:
    """A server with all directives that name files."""
    for name in ("cert", "key", "dh", "passphrases", "tickets", "clients", "trusted", "crl"):
        (tmp_path / name).write_bytes(name.encode())
    return server(
        Protocol.IMAP,
        starttls=StartTls.ENABLED,
        ssl_certificate=(CertificateFiles(certificate=f"{tmp_path}/cert", key=f"{tmp_path}/key"),) * 2,
        ssl_dhparam=f"{tmp_path}/dh",
        ssl_password_file=f"{tmp_path}/passphrases",
        ssl_session_ticket_key=(f"{tmp_path}/tickets",),
        ssl_verify_client=VerifyClient.REQUIRED,
        ssl_client_certificate=f"{tmp_path}/clients",
        ssl_trusted_certificate=f"{tmp_path}/trusted",
        ssl_crl=f"{tmp_path}/crl",
    )


def names(config: ServerConfig) -> set[str]:
    listed = tls_files(config)
    assert len(listed) == len(set(listed))
    return {Path(path).name for path in listed}


def test_tls_files_are_unique(config: ServerConfig) -> None:
    assert names(config) == {"cert", "key", "dh", "passphrases", "tickets", "clients", "trusted", "crl"}


def test_client_ca_files_are_left_out_with_verify_client_off(config: ServerConfig) -> None:
    off = dataclasses.replace(config, ssl_verify_client=VerifyClient.DISABLED)
    assert names(off) == {"cert", "key", "dh", "passphrases", "tickets"}


def test_server_without_tls_has_no_files(config: ServerConfig) -> None:
    assert tls_files(dataclasses.replace(config, starttls=StartTls.DISABLED)) == ()


@pytest.mark.parametrize("name", ["cert", "key", "dh", "passphrases", "tickets", "clients", "trusted", "crl"])
def test_fingerprint_changes_with_every_file(config: ServerConfig, tmp_path: Path, name: str) -> None:
    before = fingerprint(config)
    assert fingerprint(config) == before
    (tmp_path / name).write_bytes(b"something else")
    changed = fingerprint(config)
    (tmp_path / name).unlink()
    missing = fingerprint(config)
    assert len({before, changed, missing}) == 3


@pytest.mark.parametrize(
    ("directives", "counts"),
    [
        ({"ssl_ciphers": "HIGH"}, True),
        ({"ssl_protocols": frozenset({"TLSv1.3", "TLSv1.2"})}, False),  # the same, in another order
        ({"protocol": Protocol.SMTP}, True),
        ({"name": "other"}, True),
        ({"auth_http_facts": True}, True),  # SNI and the client's certificate are noted for it
        ({"auth_http_overrides": True}, True),
        ({"timeout": Seconds(1.0)}, False),
        ({"listen": (ListenConfig(port=1143),)}, False),
    ],
)
def test_fingerprint_changes_with_tls_directives_only(
    config: ServerConfig, directives: dict[str, Any], counts: bool
) -> None:
    changed = dataclasses.replace(config, **directives)
    assert (fingerprint(changed) != fingerprint(config)) is counts


@pytest.mark.parametrize(
    ("name", "counts"),
    [("cert", True), ("clients", True), ("trusted", True), ("crl", True), ("key", False), ("tickets", False)],
)
def test_session_context_changes_with_verification(
    config: ServerConfig, tmp_path: Path, name: str, counts: bool
) -> None:
    before = session_context(config)
    assert len(before) == 32
    (tmp_path / name).write_bytes(b"something else")
    assert (session_context(config) != before) is counts


def test_session_context_ignores_server_name_and_protocol(config: ServerConfig) -> None:
    other = dataclasses.replace(config, name="pop3", protocol=Protocol.POP3)
    assert session_context(other) == session_context(config)


def test_session_context_behind_a_shared_listener_belongs_to_one_server(config: ServerConfig) -> None:
    context = session_context(config)
    assert len({context, context_of_server(context, "a"), context_of_server(context, "b")}) == 3
    assert len(context_of_server(context, "a")) == 32
