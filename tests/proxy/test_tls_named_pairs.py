# SPDX-License-Identifier: Apache-2.0
"""The memory that a worker needs for many certificates that clients choose by name.

Other tests of these certificates are in ``test_tls_choice.py``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from mailproxy.tls.choice import MAX_CONTEXTS, CertificateChooser, ClientHello
from mailproxy_config.model import CertificateFiles
from support.tls_authority import Authority
from support.tls_peers import server_tls

NAMES: Final = 2000
LIMIT: Final = 64 * 2**20
"""Bytes; 27 MiB were measured for 2,000 EC certificates, of which 1,000 contexts are kept."""


def hello(name: str) -> ClientHello:
    """Return a ClientHello with a name, without a handshake."""
    made = ClientHello.__new__(ClientHello)
    made.name = name
    return made


def test_2000_names_need_less_than_64_mib(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = []
    for number in range(NAMES):
        issued = authority.issue(names=[f"t{number}.example"]).files
        pairs.append(CertificateFiles(certificate=issued.certificate, key=issued.key, server_names=()))
    before = resident_bytes()
    tls = server_tls(authority.issue(), ssl_certificate=tuple(pairs))
    chooser = tls.params.chooser
    assert isinstance(chooser, CertificateChooser)
    chosen = {id(chooser.choose(hello(f"t{number}.example"))) for number in range(MAX_CONTEXTS + 50)}
    assert len(chooser.table.names) == NAMES
    assert len(chooser.contexts) == MAX_CONTEXTS
    assert len(chosen) >= MAX_CONTEXTS
    assert resident_bytes() - before < LIMIT


def resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
