# SPDX-License-Identifier: Apache-2.0
"""What certificates say: names, numbers and fingerprints exactly as OpenSSL prints them."""

from __future__ import annotations

import datetime as dt
import hashlib
import ssl
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mailproxy.protocols.types import ClientCertificate
from mailproxy_config.model import VerifyClient
from support.tls_authority import DAY, NOW, Authority, Issued
from support.tls_peers import client_of, shaken, tls_of


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "C=DE/O=Ex, Inc/CN=Test CA")


def presented(authority: Authority, issued: Issued) -> ClientCertificate:
    """What our side makes of a client's certificate."""
    tls = tls_of(
        authority.issue(),
        ssl_verify_client=VerifyClient.OPTIONAL_NO_CA,
        ssl_client_certificate=authority.file,
    )
    info, _ = shaken(tls, client_of(certificate=issued))
    assert info.certificate is not None
    return info.certificate


def openssl_says(issued: Issued, *options: str) -> bytes:
    """What the command line tool prints about it."""
    command = ["openssl", "x509", "-noout", "-in", issued.files.certificate, *options]
    printed = subprocess.run(command, check=True, capture_output=True).stdout
    return printed.split(b"=", 1)[1].rstrip(b"\n")


@pytest.mark.parametrize(
    ("subject", "printed"),
    [
        ("CN=alice", b"CN=alice"),
        ("O=Ex, Inc/CN=alice", b"CN=alice,O=Ex\\, Inc"),
        ('C=DE/O=a+b;c<d>"e"/CN=#x', b'CN=\\#x,O=a\\+b\\;c\\<d\\>\\"e\\",C=DE'),
        ("CN= x ", b"CN=\\ x\\ "),
        ("CN=Käthe", b"CN=K\\C3\\A4the"),
        ("CN=a\r\nX: y", b"CN=a\\0D\\0AX: y"),
    ],
)
def test_subject_and_issuer_are_in_rfc_2253_form(authority: Authority, subject: str, printed: bytes) -> None:
    issued = authority.issue(subject)
    certificate = presented(authority, issued)
    assert certificate.subject == printed
    assert certificate.subject == openssl_says(issued, "-subject", "-nameopt", "RFC2253")
    assert certificate.issuer == b"CN=Test CA,O=Ex\\, Inc,C=DE"


@pytest.mark.parametrize(
    ("subject", "common_name"),
    [
        ("O=Ex/CN=alice", b"alice"),
        ("CN=Käthe", "Käthe".encode()),
        ("CN=first/CN=second", b"first"),
        ("O=Ex", None),
    ],
)
def test_common_name_is_first_in_utf8(authority: Authority, subject: str, common_name: bytes | None) -> None:
    assert presented(authority, authority.issue(subject)).common_name == common_name


@pytest.mark.parametrize("serial", [1, 0xABCDEF, 0x7F << 144])
def test_serial_is_upper_case_hexadecimal(authority: Authority, serial: int) -> None:
    issued = authority.issue(serial=serial)
    certificate = presented(authority, issued)
    assert certificate.serial == openssl_says(issued, "-serial")
    assert int(certificate.serial, 16) == serial


def test_fingerprint_and_pem_are_of_the_certificate(authority: Authority) -> None:
    issued = authority.issue()
    certificate = presented(authority, issued)
    der = issued.certificate.public_bytes(Encoding.DER)
    assert certificate.fingerprint == hashlib.sha1(der).hexdigest().encode()
    assert certificate.pem == issued.certificate.public_bytes(Encoding.PEM)


@pytest.mark.parametrize(
    "expires",
    [
        NOW + 30 * DAY,
        NOW - DAY,
        dt.datetime(2051, 3, 4, 5, 6, 7, tzinfo=dt.UTC),
        dt.datetime(9999, 12, 30, 23, 59, 59, tzinfo=dt.UTC),  # RFC 5280 section 4.1.2.5: no end, nearly
    ],
)
def test_not_after_of_each_certificate(authority: Authority, expires: dt.datetime) -> None:
    tls = tls_of(authority.issue(expires=expires), authority.issue(key="rsa", expires=expires + DAY))
    assert tls.not_after == (expires.timestamp(), (expires + DAY).timestamp())


@pytest.mark.parametrize(
    ("written", "expires"),
    [
        (b"99991231235959Z", 253402300799.0),
        (b"00010101000000Z", -62135596800.0),
        (b"00000101000000Z", None),
        (b"205113040506070", None),
        (b"20511304050607Z", None),
        (b"20510304256099Z", None),
        (b"2051030405.007Z", None),
        (b"xxxxxxxxxxxxxxZ", None),
        (b"\x00" * 15, None),
    ],
)
def test_certificate_with_odd_date_loads_with_or_without_expiry(
    authority: Authority, written: bytes, expires: float | None
) -> None:
    issued = authority.issue(expires=dt.datetime(2051, 3, 4, 5, 6, 7, tzinfo=dt.UTC))
    der = issued.certificate.public_bytes(Encoding.DER)
    assert der.count(b"20510304050607Z") == 1
    odd = der.replace(b"20510304050607Z", written)
    Path(issued.files.certificate).write_text(ssl.DER_cert_to_PEM_cert(odd))
    (found,) = tls_of(issued).not_after
    if written.startswith(b"0000"):
        assert found is None or found < -62135596800.0  # OpenSSL's business
    else:
        assert found == expires
