# SPDX-License-Identifier: Apache-2.0
"""TLS put to work without running anything."""

from __future__ import annotations

from pathlib import Path

from mailproxy.tls.trial import tls_problems
from mailproxy_config.model import CertificateFiles, Protocol
from support.configs import server
from support.tls_authority import Authority
from support.tls_peers import TLS_PORT


def test_what_openssl_refuses_is_told_once_for_each_server(tmp_path: Path) -> None:
    pair = (Authority(tmp_path).issue().files,)
    good = server(Protocol.IMAP, name="good", listen=TLS_PORT, ssl_certificate=pair)
    bad = server(Protocol.IMAP, name="bad", listen=TLS_PORT, ssl_certificate=pair, ssl_ciphers="nonsense")
    assert tls_problems([good]) == ()
    (problem,) = tls_problems([bad, good, bad])
    assert problem.path == "servers[bad].ssl_ciphers"


def test_servers_without_tls_are_left_alone() -> None:
    nowhere = CertificateFiles(certificate="/nowhere", key="/nowhere")
    assert tls_problems([server(Protocol.IMAP, ssl_certificate=(nowhere,))]) == ()
