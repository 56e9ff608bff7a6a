# SPDX-License-Identifier: Apache-2.0
"""Certificates by server name: 200 names, all kinds of names, reloads, resumption, limits."""

from __future__ import annotations

import dataclasses
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509

from mailproxy.enums import TlsFailure
from mailproxy.tls import choice, named_pairs
from mailproxy.tls.choice import AlpnChooser, CertificateChooser, NameChooser
from mailproxy.tls.connection import TlsHandshakeFailed
from mailproxy.tls.context import ServerTls, build, for_listener
from mailproxy.tls.resumption import TicketKeys
from mailproxy_config.model import ByteCount, Protocol, ServerConfig, SessionCache, VerifyClient
from support.configs import server
from support.tls_authority import DAY, NOW, Authority, Issued
from support.tls_peers import (
    KEY,
    TLS_PORT,
    TlsPair,
    client_context,
    connect_once,
    send_server_name,
)

VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
KEYS = TicketKeys([KEY])
TENANTS = 200


def named(issued: Issued, *names: str) -> Any:
    return dataclasses.replace(issued.files, server_names=names)


def client(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = client_context()
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def chooser_of(tls: ServerTls) -> CertificateChooser:
    assert isinstance(tls.params.chooser, CertificateChooser)
    return tls.params.chooser


@dataclasses.dataclass(frozen=True)
class Tenants:
    """A default certificate, and one for each of many names."""

    folder: Path
    default: Issued
    issued: tuple[Issued, ...]
    config: ServerConfig
    tls: ServerTls


@pytest.fixture(scope="module")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    folder = tmp_path_factory.mktemp("tenants")
    authority = Authority(folder)
    default = authority.issue("CN=default", names=["default.example"])
    issued = tuple(
        authority.issue(f"CN=t{number}", names=[f"t{number}.example"]) for number in range(TENANTS)
    )
    pairs = [default.files]
    for number, one in enumerate(issued):
        if number % 4 == 0:
            pairs.append(named(one))  # the names of the certificate
        elif number % 4 == 1:
            pairs.append(named(one, f"T{number}.example.".lower().rstrip("."), f"also{number}.example"))
        elif number % 4 == 2:
            pairs.append(named(one, f"t{number}.example", f"*.t{number}.example"))
        else:
            pairs.append(named(one, f"t{number}.example", f"xn--t{number}-hoa.example"))
    config = server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=tuple(pairs))
    return Tenants(folder, default, issued, config, build(config, ticket_keys=KEYS))


def serial_for(
    tls: ServerTls, name: bytes | None, version: ssl.TLSVersion | None = None, *, alpn: Sequence[str] = ()
) -> int:
    """The serial number of the certificate that a client gets for a name."""
    context = client(version)
    if alpn:
        context.set_alpn_protocols(list(alpn))
    pair = TlsPair(tls, context)
    try:
        if name is not None:
            send_server_name(pair.client, name)
        pair.handshake()
        der = pair.client.getpeercert(binary_form=True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number
    finally:
        pair.close()


def rejected(tls: ServerTls, context: ssl.SSLContext, name: bytes | None = None) -> tuple[TlsFailure, str]:
    """Fail a handshake; return the label of the metric, and the alert that the client gets."""
    pair = TlsPair(tls, context)
    try:
        if name is not None:
            send_server_name(pair.client, name)
        with pytest.raises(ssl.SSLWantReadError):
            pair.client.do_handshake()
        with pytest.raises(TlsHandshakeFailed) as failed:
            pair.server.handshake()
        with pytest.raises(ssl.SSLError) as alert:
            pair.client.do_handshake()
        return failed.value.failure, str(alert.value).lower()
    finally:
        pair.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_each_of_200_names_gets_its_certificate(tenants: Tenants, version: ssl.TLSVersion) -> None:
    for number, issued in enumerate(tenants.issued):
        name = f"t{number}.example".encode()
        assert serial_for(tenants.tls, name, version) == issued.certificate.serial_number, name


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("name", "tenant"),
    [
        (b"t7.example", 7),
        (b"T7.Example", 7),
        (b"t7.example.", 7),
        (b"also9.example", 9),
        (b"imap.t2.example", 2),
        (b"IMAP.T2.EXAMPLE.", 2),
        (b"xn--t3-hoa.example", 3),
        (b"a.b.t2.example", None),
        (b"imap.t7.example", None),
        (b"nobody.example", None),
        (b"default.example", None),
        (None, None),
        (b"192.0.2.1", None),
        (b"2001:db8::1", None),
        (b"[::1]", None),
        (b"t7..example", None),
        (b"t7.example..", None),
        (b"-t7.example", None),
        (b"*.t2.example", None),
        (b"t7_.example", None),
        (b"t7.example\r\nX: y", None),
        ("t\u00fc7.example".encode(), None),
        (b"\xff\xfe", None),
        (b"a" * 64 + b".example", None),
    ],
)
def test_name_of_client_hello_chooses_certificate(
    tenants: Tenants, name: bytes | None, tenant: int | None, version: ssl.TLSVersion
) -> None:
    expected = tenants.default if tenant is None else tenants.issued[tenant]
    assert serial_for(tenants.tls, name, version) == expected.certificate.serial_number


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("name", [None, b"nobody.example", b"192.0.2.1", b"t7..example"])
def test_rejected_name_gets_alert_unrecognized_name(
    tenants: Tenants, name: bytes | None, version: ssl.TLSVersion
) -> None:
    strict = build(dataclasses.replace(tenants.config, ssl_reject_handshake=True), ticket_keys=KEYS)
    failure, alert = rejected(strict, client(version), name)
    assert failure is TlsFailure.UNRECOGNIZED_NAME
    assert "unrecognized name" in alert


def test_known_names_are_served_where_others_are_rejected(tenants: Tenants) -> None:
    strict = build(dataclasses.replace(tenants.config, ssl_reject_handshake=True), ticket_keys=KEYS)
    assert serial_for(strict, b"t5.example") == tenants.issued[5].certificate.serial_number
    assert serial_for(strict, b"default.example") == tenants.default.certificate.serial_number


def test_server_name_is_noted_as_sent(tenants: Tenants) -> None:
    config = dataclasses.replace(tenants.config, auth_http_variables=True)
    info, _ = connect_once(build(config, ticket_keys=KEYS), client(), host="T7.example")
    assert info.server_name == b"T7.example"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("names", [True, False])
def test_server_name_is_noted_at_resumption(
    tenants: Tenants, version: ssl.TLSVersion, *, names: bool
) -> None:
    pairs = tenants.config.ssl_certificate if names else (tenants.default.files,)
    config = dataclasses.replace(tenants.config, ssl_certificate=pairs, auth_http_variables=True)
    tls, context = build(config, ticket_keys=KEYS), client(version)
    session = session_for(tls, "t7.example", context)
    info, _ = connect_once(tls, context, host="t7.example", session=session)
    assert (info.resumed, info.server_name) == (True, b"t7.example")


def test_context_is_built_at_first_use_and_kept(tenants: Tenants) -> None:
    tls = build(tenants.config, ticket_keys=KEYS)
    contexts = chooser_of(tls).contexts
    assert not contexts
    serial_for(tls, b"t7.example")
    (params,) = contexts.values()
    serial_for(tls, b"T7.EXAMPLE.")
    serial_for(tls, b"default.example")
    assert list(contexts.values()) == [params]


def test_least_recently_used_context_is_dropped(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MAX_CONTEXTS", 3)
    tls = build(tenants.config, ticket_keys=KEYS)
    table = chooser_of(tls).table
    for number in (0, 1, 2, 0, 3):
        serial_for(tls, f"t{number}.example".encode())
    kept = [table.names[f"t{number}.example"][0].digest for number in (2, 0, 3)]
    assert [key for (key,) in chooser_of(tls).contexts] == kept


def test_handshake_survives_the_end_of_its_context(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "MAX_CONTEXTS", 1)
    tls = build(tenants.config, ticket_keys=KEYS)
    pair = TlsPair(tls, client(ssl.TLSVersion.TLSv1_2))
    send_server_name(pair.client, b"t7.example")
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    pair.server.handshake()
    serial_for(tls, b"t8.example")
    assert len(chooser_of(tls).contexts) == 1
    pair.handshake()
    assert pair.send_to_client(b"hello") == b"hello"
    pair.close()


def test_ecdsa_and_rsa_pair_of_one_name_are_used_together(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    names = ["both.example"]
    default, ecdsa = authority.issue(), authority.issue(names=names)
    rsa = authority.issue(names=names, key="rsa")
    pairs = (default.files, named(ecdsa, *names), named(rsa))
    tls = build(server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs), ticket_keys=KEYS)
    for ciphers, expected in (("ECDHE-ECDSA-AES128-GCM-SHA256", ecdsa), ("ECDHE-RSA-AES128-GCM-SHA256", rsa)):
        context = client(ssl.TLSVersion.TLSv1_2)
        context.set_ciphers(ciphers)
        pair = TlsPair(tls, context, host="both.example")
        pair.handshake()
        der = pair.client.getpeercert(binary_form=True)
        assert der == ssl.PEM_cert_to_DER_cert(Path(expected.files.certificate).read_text())
        pair.close()


def test_default_has_pairs_of_all_key_types_for_its_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    ecdsa, rsa = authority.issue(), authority.issue(key="rsa")
    pairs = (named(ecdsa, "a.example"), named(rsa, "a.example"), named(authority.issue(), "b.example"))
    tls = build(server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs), ticket_keys=KEYS)
    assert len(tls.not_after) == 3
    assert serial_for(tls, b"a.example") == ecdsa.certificate.serial_number
    assert not chooser_of(tls).contexts


def test_expiry_of_the_first_certificate_by_name_comes_after_the_default_ones(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    default, late = authority.issue(), authority.issue(names=["a.example"], expires=NOW + 9 * DAY)
    soon = authority.issue(names=["b.example"], expires=NOW + 3 * DAY)
    pairs = (default.files, named(late), named(soon))
    config = server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs)
    tls = build(config, ticket_keys=KEYS)
    assert tls.not_after == ((NOW + 30 * DAY).timestamp(), (NOW + 3 * DAY).timestamp())
    rewrite(soon, authority.issue(names=["b.example"], expires=NOW + 20 * DAY))
    again = build(config, ticket_keys=KEYS, previous=tls)
    assert again.not_after == ((NOW + 30 * DAY).timestamp(), (NOW + 9 * DAY).timestamp())


def test_certificates_without_names_are_used_together_as_in_nginx(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    pairs = (authority.issue().files, authority.issue(key="rsa").files)
    tls = build(server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs), ticket_keys=KEYS)
    assert tls.params.chooser is None


def test_encrypted_key_is_opened_with_password_file(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    secret = authority.issue(passphrase=b"secret")
    words = tmp_path / "words"
    words.write_bytes(b"wrong\nsecret\n")
    pairs = (authority.issue().files, named(secret, "a.example"))
    config = server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs, ssl_password_file=str(words))
    assert serial_for(build(config, ticket_keys=KEYS), b"a.example") == secret.certificate.serial_number


# --- reloads ------------------------------------------------------------------------


def rewrite(issued: Issued, by: Issued) -> None:
    for old, new in (
        (issued.files.certificate, by.files.certificate),
        (issued.files.key, by.files.key),
    ):
        Path(old).write_bytes(Path(new).read_bytes())


@pytest.fixture
def three(tmp_path: Path) -> Tenants:
    authority = Authority(tmp_path)
    default = authority.issue("CN=default", names=["default.example"])
    issued = tuple(authority.issue(f"CN=t{number}", names=[f"t{number}.example"]) for number in range(3))
    pairs = (default.files, *(named(one) for one in issued))
    config = server(
        Protocol.IMAP,
        listen=TLS_PORT,
        ssl_certificate=pairs,
        ssl_session_cache=SessionCache(shared_name="x", shared_size=ByteCount(1 << 20)),
    )
    return Tenants(tmp_path, default, issued, config, build(config, ticket_keys=KEYS))


def test_reload_without_changes_returns_previous(three: Tenants) -> None:
    assert build(three.config, ticket_keys=KEYS, previous=three.tls) is three.tls


def session_for(tls: ServerTls, host: str, context: ssl.SSLContext) -> ssl.SSLSession:
    _, session = connect_once(tls, context, host=host)
    assert session is not None
    return session


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("tickets", [True, False])
def test_renewed_certificate_changes_one_context(
    three: Tenants, version: ssl.TLSVersion, *, tickets: bool
) -> None:
    config = dataclasses.replace(three.config, ssl_session_tickets=tickets)
    tls = build(config, ticket_keys=KEYS)
    context = client(version)
    hosts = ["t0.example", "t1.example", "t2.example", "default.example"]
    sessions = {host: session_for(tls, host, context) for host in hosts}
    before = dict(chooser_of(tls).contexts)
    renewed = Authority(three.folder / "..", "CN=other").issue("CN=t1", names=["t1.example"])
    rewrite(three.issued[1], renewed)
    again = build(config, ticket_keys=KEYS, previous=tls)
    assert again is not tls
    assert again.params.context is tls.params.context
    resumed = {
        host: connect_once(again, context, host=host, session=session)[0].resumed
        for host, session in sessions.items()
    }
    assert resumed == {host: host != "t1.example" for host in hosts}
    assert serial_for(again, b"t1.example", version) == renewed.certificate.serial_number
    assert before.items() <= chooser_of(again).contexts.items()


@pytest.mark.parametrize("damage", ["key of another", "not PEM", "missing", "empty"])
def test_pair_that_does_not_load_keeps_its_last_good_one(three: Tenants, damage: str) -> None:
    broken = three.issued[1]
    match damage:
        case "key of another":
            Path(broken.files.key).write_bytes(Path(three.issued[0].files.key).read_bytes())
        case "not PEM":
            Path(broken.files.certificate).write_bytes(b"-----BEGIN CERTIFICATE-----\n!\n")
        case "missing":
            Path(broken.files.key).unlink()
        case "empty":
            Path(broken.files.certificate).write_bytes(b"")
    again = build(three.config, ticket_keys=KEYS, previous=three.tls)
    for number, issued in enumerate(three.issued):
        assert serial_for(again, f"t{number}.example".encode()) == issued.certificate.serial_number
    (problem,) = again.problems
    assert problem.path == "servers[imap].ssl_certificate[2]"
    assert broken.files.certificate in problem.reason
    assert problem.reason.endswith("the last good one is used")


def test_pair_that_never_loaded_leaves_its_name_to_the_default(three: Tenants) -> None:
    Path(three.issued[1].files.key).write_bytes(b"")
    tls = build(three.config, ticket_keys=KEYS)
    assert serial_for(tls, b"t1.example") == three.default.certificate.serial_number
    assert serial_for(tls, b"t2.example") == three.issued[2].certificate.serial_number
    assert len(tls.problems) == 1


def test_worker_loads_a_key_at_its_first_use(three: Tenants) -> None:
    Path(three.issued[1].files.key).write_bytes(b"")
    tls = build(three.config, ticket_keys=KEYS, is_checked=True)
    assert tls.problems == ()
    reports: list[str] = []
    chooser_of(tls).report = reports.append
    for _ in range(2):
        assert serial_for(tls, b"t1.example") == three.default.certificate.serial_number
    assert len(reports) == 1
    assert three.issued[1].files.certificate in reports[0]
    assert serial_for(tls, b"t2.example") == three.issued[2].certificate.serial_number


def test_worker_checks_a_changed_pair_before_it_replaces_the_last_good_one(three: Tenants) -> None:
    tls = build(three.config, ticket_keys=KEYS, is_checked=True)
    Path(three.issued[1].files.key).write_bytes(Path(three.issued[0].files.key).read_bytes())
    again = build(three.config, ticket_keys=KEYS, previous=tls, is_checked=True)
    assert serial_for(again, b"t1.example") == three.issued[1].certificate.serial_number
    assert len(again.problems) == 1


def test_certificate_after_other_text_is_parsed(three: Tenants) -> None:
    path = Path(three.issued[1].files.certificate)
    path.write_bytes(b"Bag Attributes\n    name: x\n" + path.read_bytes() * 2)
    tls = build(three.config, ticket_keys=KEYS, is_checked=True)
    assert chooser_of(tls).table.names["t1.example"]


def test_problems_contain_no_key(three: Tenants) -> None:
    key = Path(three.issued[1].files.key).read_bytes()
    Path(three.issued[1].files.certificate).write_bytes(key)
    tls = build(three.config, ticket_keys=KEYS)
    assert key.splitlines()[1].decode() not in repr(tls) + repr(tls.problems) + repr(chooser_of(tls).table)


def test_changed_directive_builds_new_contexts(three: Tenants) -> None:
    serial_for(three.tls, b"t1.example")
    config = dataclasses.replace(three.config, ssl_protocols=frozenset({"TLSv1.3"}))
    again = build(config, ticket_keys=KEYS, previous=three.tls)
    assert not chooser_of(again).contexts
    failure, _ = rejected(again, client(ssl.TLSVersion.TLSv1_2), b"t1.example")
    assert failure is TlsFailure.UNSUPPORTED_VERSION


# --- directories --------------------------------------------------------------------


def put(folder: Path, name: str, issued: Issued) -> None:
    (folder / name).mkdir(parents=True)
    for source, target in ((issued.files.certificate, "tls.crt"), (issued.files.key, "tls.key")):
        (folder / name / target).write_bytes(Path(source).read_bytes())


def test_directory_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    default, old, new = (
        authority.issue(),
        authority.issue(names=["a.example", "*.b.example"]),
        authority.issue(names=["a.example", "c.example"]),
    )
    folder = tmp_path / "selected"
    put(folder, "20260101-new", new)
    put(folder, "20250101-old", old)
    put(folder, "..data", authority.issue(names=["hidden.example"]))
    (folder / "no-certificate").mkdir()
    config = server(
        Protocol.IMAP,
        listen=TLS_PORT,
        ssl_certificate=(default.files,),
        ssl_certificate_selector=str(folder),
    )
    tls = build(config, ticket_keys=KEYS)
    assert serial_for(tls, b"a.example") == old.certificate.serial_number
    assert serial_for(tls, b"x.b.example") == old.certificate.serial_number
    assert serial_for(tls, b"c.example") == new.certificate.serial_number
    assert serial_for(tls, b"hidden.example") == default.certificate.serial_number
    (problem,) = tls.problems
    assert "is not used for a.example" in problem.reason
    assert "20250101-old/tls.crt" in problem.reason


def test_directory_that_does_not_exist_has_no_certificates(tmp_path: Path) -> None:
    default = Authority(tmp_path).issue()
    config = server(
        Protocol.IMAP,
        listen=TLS_PORT,
        ssl_certificate=(default.files,),
        ssl_certificate_selector=str(tmp_path / "absent"),
    )
    tls = build(config, ticket_keys=KEYS)
    assert tls.problems == ()
    assert serial_for(tls, b"a.example") == default.certificate.serial_number


def test_directory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_pairs, "MAX_SELECTED", 1)
    authority = Authority(tmp_path)
    for name in "ab":
        put(tmp_path / "selected", name, authority.issue(names=[f"{name}.example"]))
    config = server(
        Protocol.IMAP,
        listen=TLS_PORT,
        ssl_certificate=(authority.issue().files,),
        ssl_certificate_selector=str(tmp_path / "selected"),
    )
    tls = build(config, ticket_keys=KEYS)
    assert {"a.example", "localhost"} == chooser_of(tls).table.names.keys()
    (problem,) = tls.problems
    assert problem.reason == "2 certificates, of which the first 1 are used"


def test_names_of_a_certificate_are_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_pairs, "MAX_NAMES", 2)
    authority = Authority(tmp_path)
    pairs = (authority.issue().files, named(authority.issue(names=["a.example", "b.example", "c.example"])))
    tls = build(server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs), ticket_keys=KEYS)
    assert {"a.example", "b.example", "localhost"} == chooser_of(tls).table.names.keys()


def test_large_certificate_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(named_pairs, "MAX_FILE_BYTES", 2000)
    authority = Authority(tmp_path)
    large = authority.issue(names=["a.example"])
    Path(large.files.certificate).write_bytes(Path(large.files.certificate).read_bytes() + b"\n" * 2000)
    pairs = (authority.issue().files, named(large))
    tls = build(server(Protocol.IMAP, listen=TLS_PORT, ssl_certificate=pairs), ticket_keys=KEYS)
    (problem,) = tls.problems
    assert problem.reason.endswith("has more than 2000 bytes")


# --- server blocks ------------------------------------------------------------------


@pytest.fixture
def blocks(tmp_path: Path) -> dict[str, ServerTls]:
    authority = Authority(tmp_path)
    shared = authority.issue(names=["a.example", "b.example"])
    configs = [
        server(Protocol.IMAP, name="a", listen=TLS_PORT, ssl_certificate=(shared.files,)),
        server(
            Protocol.IMAP,
            name="b",
            listen=TLS_PORT,
            ssl_certificate=(shared.files,),
            ssl_protocols=frozenset({"TLSv1.3"}),
            ssl_verify_client=VerifyClient.OPTIONAL_NO_CA,
        ),
        server(Protocol.POP3, name="pop3", listen=TLS_PORT, ssl_certificate=(shared.files,)),
        server(Protocol.SMTP, name="smtp", listen=TLS_PORT, ssl_certificate=(shared.files,)),
    ]
    return {config.name: build(config, ticket_keys=KEYS) for config in configs}


def by_name(blocks: dict[str, ServerTls]) -> ServerTls:
    names = {"a.example": blocks["a"].params, "b.example": blocks["b"].params}
    return for_listener(blocks["a"], NameChooser(names, blocks["a"].params))


@pytest.mark.parametrize("version", VERSIONS)
def test_ticket_of_another_block_is_a_full_handshake(
    blocks: dict[str, ServerTls], version: ssl.TLSVersion
) -> None:
    names = {"a.example": blocks["a"].params, "pop3.example": blocks["pop3"].params}
    tls = for_listener(blocks["a"], NameChooser(names, blocks["a"].params))
    context = client(version)
    for first, second in (("a", "a"), ("pop3", "pop3"), ("a", "pop3"), ("pop3", "a")):
        session, resumed = session_for(tls, f"{first}.example", context), first == second
        # the client sends its ticket with the name of the second block
        info, _ = connect_once(tls, context, host=f"{second}.example", session=session)
        assert info.resumed is resumed, (first, second)


def test_block_brings_its_versions_and_verification(blocks: dict[str, ServerTls], tmp_path: Path) -> None:
    tls = by_name(blocks)
    info, _ = connect_once(tls, client(ssl.TLSVersion.TLSv1_2), host="a.example")
    assert info.version == "TLSv1.2"
    failure, _ = rejected(tls, client(ssl.TLSVersion.TLSv1_2), b"b.example")
    assert failure is TlsFailure.UNSUPPORTED_VERSION
    certified = client_context(certificate=Authority(tmp_path, "CN=clients").issue("CN=alice"))
    info, _ = connect_once(tls, certified, host="b.example")
    assert info.certificate is not None
    assert info.certificate.common_name == b"alice"
    info, _ = connect_once(tls, certified, host="a.example")
    assert info.certificate is None


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("offer", "block"),
    [(["pop3"], "pop3"), (["smtp"], "smtp"), (["imap"], "a"), (["h2", "smtp", "imap"], "smtp"), ([], "a")],
)
def test_alpn_chooses_block(
    blocks: dict[str, ServerTls], offer: list[str], block: str, version: ssl.TLSVersion
) -> None:
    by_protocol = {
        b"imap": blocks["a"].params,
        b"pop3": blocks["pop3"].params,
        b"smtp": blocks["smtp"].params,
    }
    tls = for_listener(blocks["a"], AlpnChooser(by_protocol, blocks["a"].params))
    context = client(version)
    if offer:
        context.set_alpn_protocols(offer)
    pair = TlsPair(tls, context)
    pair.handshake()
    assert pair.server.server == block
    chosen = {"a": "imap"}.get(block, block)
    assert pair.client.selected_alpn_protocol() == (chosen if offer else None)
    pair.close()


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("offer", [["h2", "http/1.1"], ["managesieve"], []])
def test_other_alpn_offers_get_alert_no_application_protocol(
    blocks: dict[str, ServerTls], offer: list[str], version: ssl.TLSVersion
) -> None:
    tls = for_listener(blocks["a"], AlpnChooser({b"imap": blocks["a"].params}, None))
    context = client(version)
    if offer:
        context.set_alpn_protocols(offer)
    failure, alert = rejected(tls, context)
    assert failure is TlsFailure.ALPN_MISMATCH
    assert "no application protocol" in alert


def test_hello_retry_request_keeps_the_choice(tenants: Tenants) -> None:
    config = dataclasses.replace(tenants.config, ssl_ecdh_curve="secp384r1")
    tls = build(config, ticket_keys=KEYS)
    serial = tenants.issued[7].certificate.serial_number
    assert serial_for(tls, b"t7.example", ssl.TLSVersion.TLSv1_3) == serial


def test_single_certificate_has_no_callback(tenants: Tenants, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(choice, "ClientHello", fail)
    config = dataclasses.replace(tenants.config, ssl_certificate=(tenants.default.files,))
    tls = build(config, ticket_keys=KEYS)
    before = len(choice._UNDECIDED)
    connect_once(tls, client(), host="t7.example")
    assert len(choice._UNDECIDED) == before
