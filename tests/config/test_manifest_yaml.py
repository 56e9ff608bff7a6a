# SPDX-License-Identifier: Apache-2.0
"""Formatting a manifest as YAML."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailproxy_config.manifest import parse_manifest
from mailproxy_config.manifest_yaml import load_documents, to_manifest_yaml
from support.config_bodies import bodies, body, server
from support.fuzz import examples

EXPECTED = """\
apiVersion: mailproxy.dev/v1alpha1
kind: MailProxy
metadata: {name: edge, namespace: mail, generation: 7, uid: u-1}
spec:
  mail:
    authHttp: a
    authHttpHeader:
      - {name: X, value: 'yes'}
  servers:
    - name: imap
      listen:
        - {port: 143}
        - {address: '[::]', port: 143}
      imapCapabilities: [IMAP4rev1, 'NO', '08', IDLE, '1e3', SIZE 5]
"""


def test_manifest_is_formatted_in_block_style() -> None:
    resource = body(
        server(
            listen=[{"port": 143}, {"address": "[::]", "port": 143}],
            imapCapabilities=["IMAP4rev1", "NO", "08", "IDLE", "1e3", "SIZE 5"],
        ),
        mail={"authHttp": "a", "authHttpHeader": [{"name": "X", "value": "yes"}]},
    )
    assert to_manifest_yaml(parse_manifest(resource)) == EXPECTED


def test_long_list_has_one_line_per_item() -> None:
    words = ["x" * 30, "y" * 30, "z" * 30]
    text = to_manifest_yaml(parse_manifest(body(server(imapCapabilities=words))))
    assert f"      imapCapabilities:\n        - {words[0]}\n        - {words[1]}\n" in text


@given(bodies())
@settings(max_examples=examples(50), suppress_health_check=[HealthCheck.too_slow])
def test_formatted_manifest_reads_as_the_same(resource: dict[str, Any]) -> None:
    manifest = parse_manifest(resource)
    assert load_documents(to_manifest_yaml(manifest)) == [manifest.raw]


@pytest.mark.parametrize(
    "word", ["y", "n", "on", "1:30", "0o17", "08", "1_000", "1e3", "=", "<<", "~", "", "- a"]
)
def test_ambiguous_words_are_quoted(word: str) -> None:
    manifest = parse_manifest(body(mail={"authHttp": "a", "sslCiphers": word}))
    assert load_documents(to_manifest_yaml(manifest))[0]["spec"]["mail"]["sslCiphers"] == word


@given(st.text(st.sampled_from("0123456789.+-_xobeEfyYnNoO~ :#"), max_size=8))
def test_arbitrary_text_is_read_back_as_text(word: str) -> None:
    manifest = parse_manifest(body(mail={"authHttp": "a", "sslCiphers": word}))
    assert load_documents(to_manifest_yaml(manifest))[0]["spec"]["mail"]["sslCiphers"] == word
