# SPDX-License-Identifier: Apache-2.0
"""Client certificates: the handshake completes, the verify code is right, also when resumed; descriptions."""

from __future__ import annotations

import hashlib
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from mailproxy.protocols.types import CertificateFault, ClientCertificate, TlsInfo, certificate_fault
from mailproxy.tls.context import ServerTls
from mailproxy_config.errors import ConfigError
from mailproxy_config.model import SessionCache, VerifyClient
from support.tls_authority import DAY, NOW, SERVER_ONLY, Authority, Issued
from support.tls_peers import client_context, connect_once, serve_tls, server_tls

EVERY_MODE = [VerifyClient.REQUIRED, VerifyClient.OPTIONAL, VerifyClient.OPTIONAL_NO_CA]
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def verifying(
    authority: Authority, mode: VerifyClient = VerifyClient.OPTIONAL, **directives: Any
) -> ServerTls:
    named: dict[str, Any] = {"ssl_client_certificate": authority.file, **directives}
    return server_tls(authority.issue(), ssl_verify_client=mode, **named)


def named(directive: str, path: str) -> dict[str, Any]:
    return {directive: path}


def verified(tls: ServerTls, certificate: Issued | None, version: ssl.TLSVersion = VERSIONS[1]) -> TlsInfo:
    context = client_context(certificate=certificate)
    context.minimum_version = context.maximum_version = version
    return connect_once(tls, context)[0]


def self_signed(authority: Authority) -> Issued:
    return authority.self_signed()


def of_another(authority: Authority) -> Issued:
    return Authority(authority.folder, "CN=Another CA").issue("CN=mallory")


def with_chain_of_another(authority: Authority) -> Issued:
    root = Authority(authority.folder, "CN=Another root")
    issued = root.issue("CN=mallory")
    chain = Path(issued.files.certificate)
    chain.write_bytes(chain.read_bytes() + Path(root.file).read_bytes())
    return issued


def expired(authority: Authority) -> Issued:
    return authority.issue("CN=late", expires=NOW - DAY)


def of_another_and_expired(authority: Authority) -> Issued:
    return Authority(authority.folder, "CN=Another CA").issue("CN=mallory", expires=NOW - DAY)


def of_another_and_for_servers(authority: Authority) -> Issued:
    return Authority(authority.folder, "CN=Another CA").issue("CN=mallory", purpose=SERVER_ONLY)


def for_servers(authority: Authority) -> Issued:
    return authority.issue("CN=server", purpose=SERVER_ONLY)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_valid_certificate_is_accepted(
    authority: Authority, mode: VerifyClient, version: ssl.TLSVersion
) -> None:
    info = verified(verifying(authority, mode), authority.issue("CN=alice"), version)
    assert info.certificate is not None
    assert info.certificate.subject == b"CN=alice"
    assert (info.verify_code, info.verify_error, info.verify_is_tolerable) == (0, b"ok", False)
    assert certificate_fault(mode, info) is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", EVERY_MODE)
def test_handshake_without_certificate_completes(
    authority: Authority, mode: VerifyClient, version: ssl.TLSVersion
) -> None:
    info = verified(verifying(authority, mode), None, version)
    assert (info.certificate, info.verify_code) == (None, 0)
    assert (certificate_fault(mode, info) is CertificateFault.MISSING) is (mode is VerifyClient.REQUIRED)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("make", "code", "tolerable"),
    [
        (self_signed, 18, True),
        (with_chain_of_another, 19, True),
        (of_another, 21, True),
        (expired, 10, False),
        (for_servers, 26, False),
        (of_another_and_expired, 10, False),
        (of_another_and_for_servers, 26, False),  # OpenSSL alone would end with 21
    ],
)
def test_handshake_with_bad_certificate_completes_with_verify_code(
    authority: Authority,
    make: Callable[[Authority], Issued],
    code: int,
    tolerable: bool,
    version: ssl.TLSVersion,
) -> None:
    info = verified(verifying(authority, VerifyClient.OPTIONAL_NO_CA), make(authority), version)
    assert (info.verify_code, info.verify_is_tolerable) == (code, tolerable)
    assert info.verify_error
    assert (certificate_fault(VerifyClient.OPTIONAL_NO_CA, info) is None) is tolerable
    assert certificate_fault(VerifyClient.OPTIONAL, info) is CertificateFault.INVALID


def test_verify_client_off_requests_no_certificate(authority: Authority) -> None:
    tls = server_tls(authority.issue(), ssl_client_certificate="/nonexistent")
    info = verified(tls, authority.issue("CN=alice"))
    assert info.certificate is None


def test_optional_no_ca_needs_no_ca_file(authority: Authority) -> None:
    tls = server_tls(authority.issue(), ssl_verify_client=VerifyClient.OPTIONAL_NO_CA)
    info = verified(tls, authority.issue("CN=alice"))
    assert (info.verify_code, info.verify_is_tolerable) == (21, True)


@pytest.mark.parametrize("mode", [VerifyClient.REQUIRED, VerifyClient.OPTIONAL])
def test_required_and_optional_need_ca_file(authority: Authority, mode: VerifyClient) -> None:
    with pytest.raises(ConfigError) as caught:
        server_tls(authority.issue(), ssl_verify_client=mode)
    assert str(caught.value) == (
        "servers[imap].ssl_verify_client: "
        "no ssl_client_certificate or ssl_trusted_certificate for ssl_verify_client"
    )


@pytest.mark.parametrize(("depth", "code"), [(0, 22), (1, 0), (2, 0)])
def test_chain_above_verify_depth_is_bad(authority: Authority, depth: int, code: int) -> None:
    middle = Authority(authority.folder, "CN=Middle CA", signer=authority)
    issued = middle.issue("CN=alice")
    chain = Path(issued.files.certificate)
    chain.write_bytes(chain.read_bytes() + Path(middle.file).read_bytes())
    info = verified(verifying(authority, ssl_verify_depth=depth), issued)
    assert info.verify_code == code


def test_revoked_certificate_is_bad_and_others_are_not(authority: Authority) -> None:
    revoked, other = authority.issue("CN=gone"), authority.issue("CN=alice")
    tls = verifying(authority, VerifyClient.OPTIONAL_NO_CA, ssl_crl=authority.revocation_list(revoked))
    assert verified(tls, revoked).verify_code == 23
    assert verified(tls, other).verify_code == 0


def test_crl_is_required_for_whole_chain(authority: Authority) -> None:
    middle = Authority(authority.folder, "CN=Middle CA", signer=authority)
    issued = middle.issue("CN=alice")
    chain = Path(issued.files.certificate)
    chain.write_bytes(chain.read_bytes() + Path(middle.file).read_bytes())
    tls = verifying(authority, ssl_verify_depth=3, ssl_crl=middle.revocation_list())
    assert verified(tls, issued).verify_code == 3
    both = middle.write(
        "crls", Path(middle.revocation_list()).read_bytes() + Path(authority.revocation_list()).read_bytes()
    )
    assert verified(verifying(authority, ssl_verify_depth=3, ssl_crl=both), issued).verify_code == 0


def test_certificates_in_crl_file_are_not_trusted(authority: Authority) -> None:
    other = Authority(authority.folder, "CN=Another CA")
    mixed = Path(other.revocation_list()).read_bytes() + Path(other.file).read_bytes()
    tls = verifying(authority, ssl_crl=authority.write("mixed", mixed))
    assert verified(tls, other.issue("CN=mallory")).verify_code != 0


@pytest.mark.parametrize(
    ("directive", "contents", "words"),
    [
        ("ssl_client_certificate", b"nothing", "cannot load certificates"),
        ("ssl_trusted_certificate", b"", "cannot load certificates"),
        ("ssl_crl", b"nothing", "cannot load CRL"),
    ],
)
def test_client_ca_and_crl_files_with_other_content_are_problems(
    authority: Authority, directive: str, contents: bytes, words: str
) -> None:
    path = authority.write("bad", contents)
    with pytest.raises(ConfigError) as caught:
        verifying(authority, **named(directive, path))
    (problem,) = caught.value.problems
    assert problem.path == f"servers[imap].{directive}"
    assert problem.reason.startswith(f'{words} "{path}": ')
    assert "no reason" not in problem.reason


@pytest.mark.parametrize("directive", ["ssl_client_certificate", "ssl_trusted_certificate", "ssl_crl"])
def test_missing_client_ca_and_crl_files_are_problems(authority: Authority, directive: str) -> None:
    with pytest.raises(ConfigError) as caught:
        verifying(authority, **named(directive, "/nonexistent"))
    (problem,) = caught.value.problems
    assert problem.reason == 'cannot read "/nonexistent": No such file or directory'


# -- resumption


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("directives", "resumed"),
    [
        ({}, True),
        ({"ssl_session_tickets": False, "ssl_session_cache": SessionCache(builtin=100)}, True),
    ],
)
def test_resumed_session_has_certificate(
    authority: Authority, version: ssl.TLSVersion, directives: dict[str, Any], resumed: bool
) -> None:
    tls = verifying(authority, VerifyClient.REQUIRED, **directives)
    context = client_context(certificate=authority.issue("CN=alice"))
    context.minimum_version = context.maximum_version = version
    first, session = connect_once(tls, context)
    again, _ = connect_once(tls, context, session=session)
    assert (first.resumed, again.resumed) == (False, resumed)
    assert again.certificate == first.certificate
    assert again.verify_code == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_resumed_session_keeps_tolerated_verify_code(authority: Authority, version: ssl.TLSVersion) -> None:
    tls = verifying(authority, VerifyClient.OPTIONAL_NO_CA)
    context = client_context(certificate=authority.self_signed())
    context.minimum_version = context.maximum_version = version
    first, session = connect_once(tls, context)
    again, _ = connect_once(tls, context, session=session)
    assert again.resumed
    assert (
        (again.verify_code, again.verify_error)
        == (first.verify_code, first.verify_error)
        == (
            18,
            first.verify_error,
        )
    )


@pytest.mark.parametrize("version", VERSIONS)
def test_bad_certificate_is_never_resumed_as_valid(authority: Authority, version: ssl.TLSVersion) -> None:
    cached: dict[str, Any] = {"ssl_session_tickets": False, "ssl_session_cache": SessionCache(builtin=100)}
    for directives in ({}, cached):
        tls = verifying(authority, **directives)
        context = client_context(certificate=authority.issue("CN=late", expires=NOW - DAY))
        context.minimum_version = context.maximum_version = version
        _, session = connect_once(tls, context)
        again, _ = connect_once(tls, context, session=session)
        assert again.verify_code == 10
        assert again.resumed is not bool(
            directives
        )  # the cache entry was removed; a ticket still contains it


def test_session_is_not_resumed_after_rules_change(authority: Authority) -> None:
    alice, server_certificate = authority.issue("CN=alice"), authority.issue()
    common: dict[str, Any] = {
        "ssl_verify_client": VerifyClient.OPTIONAL,
        "ssl_client_certificate": authority.file,
    }
    before = server_tls(server_certificate, ssl_crl=authority.revocation_list(), **common)
    after = server_tls(server_certificate, ssl_crl=authority.revocation_list(alice), **common)
    context = client_context(certificate=alice)
    info, session = connect_once(before, context)
    assert info.verify_code == 0
    again, _ = connect_once(after, context, session=session)
    assert (again.resumed, again.verify_code) == (False, 23)


# -- bytes sent to the client


def test_only_ssl_client_certificate_names_are_sent(authority: Authority) -> None:
    other = Authority(authority.folder, "CN=Quiet CA")
    tls = verifying(authority, ssl_trusted_certificate=other.file)
    assert verified(tls, other.issue("CN=bob")).verify_code == 0
    with serve_tls(tls) as port:
        output = s_client(port, "-nameopt", "RFC2253")
    names = output.partition("Acceptable client certificate CA names")[2].partition("Requested Signature")[0]
    assert names.split("\n")[1:2] == ["CN=Test CA"]
    assert "Quiet CA" not in names


def test_openssl_client_certificate_is_verified(authority: Authority) -> None:
    alice = authority.issue("O=Ex, Inc/CN=alice")
    tls = verifying(authority, VerifyClient.REQUIRED)
    with serve_tls(tls) as port:
        output = s_client(port, "-cert", alice.files.certificate, "-key", alice.files.key)
    assert "verify=0 CN=alice,O=Ex\\, Inc" in output


def test_server_chain_has_no_client_ca_certificates(authority: Authority) -> None:
    middle = Authority(authority.folder, "CN=Middle CA", signer=authority)
    tls = server_tls(
        middle.issue(), ssl_verify_client=VerifyClient.OPTIONAL, ssl_trusted_certificate=middle.file
    )
    with serve_tls(tls) as port:
        output = s_client(port, "-showcerts")
    assert output.count("BEGIN CERTIFICATE") == 1


def s_client(port: int, *options: str) -> str:
    """The output of ``openssl s_client``."""
    command = ["openssl", "s_client", "-ign_eof", "-connect", f"127.0.0.1:{port}", *options]
    return subprocess.run(
        command, capture_output=True, timeout=20, stdin=subprocess.DEVNULL, check=False
    ).stdout.decode()


@pytest.fixture
def dn_authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "C=DE/O=Ex, Inc/CN=Test CA")


def description_of(dn_authority: Authority, issued: Issued) -> ClientCertificate:
    """The description of a client's certificate."""
    tls = server_tls(
        dn_authority.issue(),
        ssl_verify_client=VerifyClient.OPTIONAL_NO_CA,
        ssl_client_certificate=dn_authority.file,
    )
    info, _ = connect_once(tls, client_context(certificate=issued))
    assert info.certificate is not None
    return info.certificate


def openssl_x509(issued: Issued, *options: str) -> bytes:
    """The output of ``openssl x509``."""
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
def test_subject_and_issuer_are_in_rfc_2253_form(
    dn_authority: Authority, subject: str, printed: bytes
) -> None:
    issued = dn_authority.issue(subject)
    certificate = description_of(dn_authority, issued)
    assert certificate.subject == printed
    assert certificate.subject == openssl_x509(issued, "-subject", "-nameopt", "RFC2253")
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
def test_common_name_is_first_in_utf8(
    dn_authority: Authority, subject: str, common_name: bytes | None
) -> None:
    assert description_of(dn_authority, dn_authority.issue(subject)).common_name == common_name


@pytest.mark.parametrize("serial", [1, 0xABCDEF, 0x7F << 144])
def test_serial_is_upper_case_hexadecimal(dn_authority: Authority, serial: int) -> None:
    issued = dn_authority.issue(serial=serial)
    certificate = description_of(dn_authority, issued)
    assert certificate.serial == openssl_x509(issued, "-serial")
    assert int(certificate.serial, 16) == serial


def test_fingerprint_and_pem_are_of_the_certificate(dn_authority: Authority) -> None:
    issued = dn_authority.issue()
    certificate = description_of(dn_authority, issued)
    der = issued.certificate.public_bytes(Encoding.DER)
    assert certificate.fingerprint == hashlib.sha1(der).hexdigest().encode()
    assert certificate.pem == issued.certificate.public_bytes(Encoding.PEM)
