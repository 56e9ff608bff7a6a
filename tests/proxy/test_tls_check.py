# SPDX-License-Identifier: Apache-2.0
"""The check of a server's TLS without running it."""

from __future__ import annotations

from pathlib import Path

from mailproxy.tls.check import check_tls
from mailproxy_config.model import Protocol
from support.configs import server
from support.tls_authority import Authority
from support.tls_peers import TLS_PORT


def test_check_reports_problems_of_openssl(tmp_path: Path) -> None:
    pair = (Authority(tmp_path).issue().files,)
    good = server(Protocol.IMAP, name="good", listen=TLS_PORT, ssl_certificate=pair)
    bad = server(Protocol.IMAP, name="bad", listen=TLS_PORT, ssl_certificate=pair, ssl_ciphers="nonsense")
    assert check_tls(good).problems == ()
    (problem,) = check_tls(bad).problems
    assert problem.path == "servers[bad].ssl_ciphers"
