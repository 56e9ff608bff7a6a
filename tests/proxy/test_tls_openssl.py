# SPDX-License-Identifier: Apache-2.0
"""Calling the OpenSSL of ``ssl``: its pointers are found, and any other layout or library is rejected."""

from __future__ import annotations

import _ssl
import ssl
import struct
from pathlib import Path

import pytest

from mailproxy.tls.openssl import OpenSsl, OpenSslUnavailable, load_openssl, probe
from support.tls_authority import Authority

WORD = struct.calcsize("P")
HEAD = object.__basicsize__


def test_load_openssl_is_cached() -> None:
    native = load_openssl()
    assert isinstance(native, OpenSsl)
    assert load_openssl() is native


def test_context_address_is_that_of_ssl() -> None:
    native = probe()
    assert isinstance(native, OpenSsl)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    native.lib.SSL_CTX_set_verify_depth(native.context(context), 3)
    context.num_tickets = 7
    assert native.lib.SSL_CTX_get_num_tickets(native.context(context)) == 7


@pytest.mark.parametrize("head", [0, WORD, HEAD + WORD, HEAD + 2 * WORD])
def test_probe_rejects_other_layout(head: int) -> None:
    assert probe(head=head) == OpenSslUnavailable("the layout of its ssl objects is not known")


@pytest.mark.parametrize("library", ["libc.so.6", "/nonexistent/libssl.so"])
def test_probe_rejects_other_library(library: str) -> None:
    found = probe(library)
    assert isinstance(found, OpenSslUnavailable)
    assert found.reason.startswith("its OpenSSL cannot be called: ")


def test_probe_accepts_path_of_extension() -> None:
    assert isinstance(probe(_ssl.__file__), OpenSsl)


def test_errors_empties_queue() -> None:
    native = load_openssl()
    assert isinstance(native, OpenSsl)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    assert native.lib.SSL_CTX_load_verify_file(native.context(context), b"/nonexistent") == 0
    assert "No such file or directory" in native.errors()
    assert native.errors() == "no reason given"


def test_printed_returns_bio_content(tmp_path: Path) -> None:
    native = load_openssl()
    assert isinstance(native, OpenSsl)
    lib = native.lib
    files = Authority(tmp_path).issue(serial=0xABCDEF).files
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.certificate, files.key)
    serial = lib.X509_get0_serialNumber(lib.SSL_CTX_get0_certificate(native.context(context)))
    assert native.printed(lambda bio: lib.i2a_ASN1_INTEGER(bio, serial)) == b"ABCDEF"
    assert native.printed(lambda bio: None) == b""
