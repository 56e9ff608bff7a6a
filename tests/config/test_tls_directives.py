# SPDX-License-Identifier: Apache-2.0
"""The directives of the TLS module."""

from __future__ import annotations

import pytest

from mailproxy_config.directives import by_name
from mailproxy_config.model import StartTls, VerifyClient
from mailproxy_config.tls_directives import TLS_DIRECTIVES, TLS_FOLDED_DIRECTIVES


@pytest.mark.parametrize(
    ("name", "word", "value"),
    [
        ("starttls", "off", StartTls.DISABLED),
        ("starttls", "on", StartTls.ENABLED),
        ("starttls", "ONLY", StartTls.ONLY),
        ("ssl_verify_client", "off", VerifyClient.DISABLED),
        ("ssl_verify_client", "on", VerifyClient.REQUIRED),
        ("ssl_verify_client", "optional", VerifyClient.OPTIONAL),
        ("ssl_verify_client", "optional_no_ca", VerifyClient.OPTIONAL_NO_CA),
    ],
)
def test_nginx_words_are_parsed(name: str, word: str, value: object) -> None:
    assert by_name(TLS_DIRECTIVES)[name].type.nginx([word]) == value


def test_certificate_key_is_part_of_ssl_certificate() -> None:
    assert [row.part_of for row in TLS_FOLDED_DIRECTIVES] == ["ssl_certificate"]
    assert TLS_FOLDED_DIRECTIVES[0].part_of in by_name(TLS_DIRECTIVES)
