# SPDX-License-Identifier: Apache-2.0
"""The server's certificates: several, encrypted keys, problems, and their expiry."""

from __future__ import annotations

import datetime as dt
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mailproxy_config.errors import ConfigError
from mailproxy_config.model import CertificateFiles, ListenConfig, StartTls
from support.tls_authority import DAY, NOW, Authority, Issued
from support.tls_peers import client_context, connect_once, server_tls

TLS12 = frozenset({"TLSv1.2"})


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server_certificate(authority: Authority) -> Issued:
    return authority.issue()


def problem(*pairs: tuple[str, str], **directives: Any) -> str:
    files = tuple(CertificateFiles(certificate=certificate, key=key) for certificate, key in pairs)
    with pytest.raises(ConfigError) as caught:
        server_tls(ssl_certificate=files, **directives)
    return str(caught.value)


def test_certificate_is_chosen_by_key_type(authority: Authority, server_certificate: Issued) -> None:
    tls = server_tls(server_certificate, authority.issue(key="rsa"), ssl_protocols=TLS12)
    for kind in ("ECDSA", "RSA"):
        context = client_context(authority)
        context.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
        assert connect_once(tls, context)[0].cipher == f"ECDHE-{kind}-AES128-GCM-SHA256"


def test_chain_is_sent(authority: Authority) -> None:
    middle = Authority(authority.folder, "CN=Middle CA", signer=authority)
    issued = middle.issue()
    chain = Path(issued.files.certificate)
    chain.write_bytes(chain.read_bytes() + Path(middle.file).read_bytes())
    assert connect_once(server_tls(issued), client_context(authority))[0].version == "TLSv1.3"


@pytest.mark.parametrize(
    "contents", [b"secret\n", b"wrong\nsecret\n", b"wrong\r\n\r\nsecret\r\n", b"wrong\n\nsecret"]
)
def test_passphrases_are_tried_in_order(authority: Authority, contents: bytes) -> None:
    issued = authority.issue(passphrase=b"secret")
    tls = server_tls(issued, ssl_password_file=authority.write("passphrases", contents))
    assert connect_once(tls, client_context(authority))[0].version == "TLSv1.3"


def test_unencrypted_key_works_with_password_file(authority: Authority, server_certificate: Issued) -> None:
    path = authority.write("passphrases", b"one\ntwo\n")
    one, two = authority.issue(passphrase=b"one"), authority.issue(key="rsa", passphrase=b"two")
    assert len(server_tls(server_certificate, one, two, ssl_password_file=path).not_after) == 3


def test_wrong_passphrase_is_a_problem(authority: Authority) -> None:
    issued = authority.issue(passphrase=b"secret")
    pair = (issued.files.certificate, issued.files.key)
    output = problem(pair, ssl_password_file=authority.write("passphrases", b"hunter1\nhunter2\n"))
    assert output == (
        f'servers[imap].ssl_certificate[0]: cannot load certificate key "{issued.files.key}": '
        "no passphrase in ssl_password_file opens it"
    )
    assert problem(pair).endswith("it is encrypted: name a file with its passphrase in ssl_password_file")


def test_too_long_passphrase_is_a_problem(authority: Authority, server_certificate: Issued) -> None:
    path = authority.write("passphrases", b"x" * 1025)
    output = problem(
        (server_certificate.files.certificate, server_certificate.files.key), ssl_password_file=path
    )
    assert output == "servers[imap].ssl_password_file: a passphrase has more than 1024 bytes"


def test_all_problems_of_key_pairs_are_reported_together(
    authority: Authority, server_certificate: Issued, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.pem"
    bad.write_bytes(b"-----BEGIN CERTIFICATE-----\nnonsense\n")
    empty = tmp_path / "empty.pem"
    empty.write_bytes(b"")
    other = authority.issue()
    certificate, key = server_certificate.files.certificate, server_certificate.files.key
    output = problem(
        (certificate, key),
        (str(bad), key),
        (certificate, str(empty)),
        (certificate, other.files.key),
        ("/nonexistent", key),
        (certificate, str(tmp_path)),
        ssl_password_file="/none",
    ).split("\n")
    beginnings = [
        'ssl_password_file: cannot read "/none": No such file or directory',
        f'ssl_certificate[1]: cannot load certificate "{bad}": bad end line',
        f'ssl_certificate[2]: cannot load certificate key "{empty}": ',
        f'ssl_certificate[3]: SSL_CTX_use_PrivateKey("{other.files.key}") failed: key values mismatch: '
        f'it is not the key of "{certificate}"',
        'ssl_certificate[4]: cannot read "/nonexistent": No such file or directory',
        f'ssl_certificate[5]: cannot read "{tmp_path}": Is a directory',
    ]
    assert len(output) == len(beginnings)
    for line, beginning in zip(output, beginnings, strict=True):
        assert line.startswith(f"servers[imap].{beginning}")


@pytest.mark.parametrize(
    ("directives", "mode"),
    [
        ({"listen": (ListenConfig(port=993, ssl=True),)}, "listen ... ssl"),
        ({"listen": (ListenConfig(port=143),), "starttls": StartTls.ONLY}, "starttls"),
        ({"listen": (ListenConfig(port=993, ssl=True),), "starttls": StartTls.ENABLED}, "listen ... ssl"),
    ],
)
def test_missing_ssl_certificate_is_a_problem(directives: dict[str, Any], mode: str) -> None:
    assert problem(**directives) == (
        f'servers[imap].ssl_certificate: no "ssl_certificate" is defined for the "{mode}" directive'
    )


@pytest.mark.parametrize(
    "expires",
    [
        NOW + 30 * DAY,
        NOW - DAY,
        dt.datetime(2051, 3, 4, 5, 6, 7, tzinfo=dt.UTC),
        dt.datetime(
            9999, 12, 30, 23, 59, 59, tzinfo=dt.UTC
        ),  # RFC 5280 section 4.1.2.5: no defined expiration
    ],
)
def test_not_after_of_each_certificate(authority: Authority, expires: dt.datetime) -> None:
    tls = server_tls(authority.issue(expires=expires), authority.issue(key="rsa", expires=expires + DAY))
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
    (found,) = server_tls(issued).not_after
    if written.startswith(b"0000"):
        assert found is None or found < -62135596800.0  # depends on the version of OpenSSL
    else:
        assert found == expires
