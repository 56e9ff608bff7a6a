# SPDX-License-Identifier: Apache-2.0
"""Problems of the compiled configuration are mapped to file and line."""

from __future__ import annotations

import pytest

from mailproxy_config.errors import Problem
from mailproxy_config.nginx.source_map import NginxSourceMap
from mailproxy_config.nginx.values import Block

_MAIL = Block("spec.mail", "n:1", locations={"/a.pem": "n:2", "/a.key": "n:3"})
_IMAP = Block("spec.servers[0]", "n:10", locations={"/b.pem": "n:11"})
_POP3 = Block("spec.servers[1]", "n:20")
_ORIGINS = {
    "spec.mail.sslCiphers": ("n:4", "ssl_ciphers"),
    "spec.servers[0].sslCiphers": ("n:12", "ssl_ciphers"),
    "spec.servers[1].sslConfCommand[1]": ("n:22", "ssl_conf_command"),
}
PLACES = NginxSourceMap({"imap": _IMAP, "pop3": _POP3}, _MAIL, _ORIGINS)


@pytest.mark.parametrize(
    ("path", "reason", "place"),
    [
        ("servers[imap].ssl_ciphers", "no", "n:12"),
        ("servers[0].ssl_ciphers", "no", "n:12"),
        ("servers[pop3].ssl_ciphers", "no", "n:4"),  # inherited
        ("servers[1].ssl_crl", "no", "n:20"),  # not set
        ("servers[pop3].ssl_conf_command[1]", "no", "n:22"),
        ("servers[0].ssl_certificate[1]", "cannot load /a.key", "n:3"),
        ("servers[1].nonsense", "no", "n:20"),
        ("servers[0].ssl_certificate", "/b.pem: there is no such file", "n:11"),
        ("servers[1].ssl_certificate_key", 'cannot read "/a.key"', "n:3"),
    ],
)
def test_problem_is_mapped_to_file_and_line(path: str, reason: str, place: str) -> None:
    directive = path.rpartition(".")[2].partition("[")[0]
    assert PLACES.located(Problem(path, reason)) == Problem(place, f'"{directive}": {reason}')


@pytest.mark.parametrize("path", ["", "spec.workers", "servers[smtp].timeout", "servers[2].timeout"])
def test_problem_without_server_is_unchanged(path: str) -> None:
    assert PLACES.located(Problem(path, "no")) == Problem(path, "no")
