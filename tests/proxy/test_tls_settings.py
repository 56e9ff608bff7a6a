# SPDX-License-Identifier: Apache-2.0
"""Directives for the TLS handshake."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from mailproxy.tls.context import ServerTls
from mailproxy.tls.openssl import OpenSsl, load_openssl
from mailproxy_config.errors import ConfigError
from support.tls_authority import Authority, Issued
from support.tls_peers import TlsPair, client_context, connect_once, serve_tls, server_tls

SET_GROUPS_LIST, GET_NEGOTIATED_GROUP = 92, 134
"""``SSL_CTRL_SET_GROUPS_LIST`` and ``SSL_CTRL_GET_NEGOTIATED_GROUP``."""
NIDS = {"prime256v1": 415, "secp384r1": 715, "X25519": 1034}
"""OpenSSL's numbers of groups."""
TLS12: dict[str, Any] = {"ssl_protocols": frozenset({"TLSv1.2"})}


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def server_certificate(authority: Authority) -> Issued:
    return authority.issue()


@pytest.fixture(scope="module")
def rsa(authority: Authority) -> Issued:
    return authority.issue(key="rsa")


def problem(*issued: Issued, **directives: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        server_tls(*issued, **directives)
    return str(caught.value)


def s_client_output(tls: ServerTls, *options: str) -> str:
    """The output of ``openssl s_client``, also after a failure."""
    with serve_tls(tls) as port:
        command = ["openssl", "s_client", "-ign_eof", "-connect", f"127.0.0.1:{port}", *options]
        done = subprocess.run(command, capture_output=True, timeout=20, stdin=subprocess.DEVNULL, check=False)
    return (done.stdout + done.stderr).decode()


OLD: dict[str, Any] = {"ssl_ciphers": "ALL:@SECLEVEL=0"}
OLD_CLIENT = ["-cipher", "ALL:@SECLEVEL=0"]


@pytest.mark.parametrize(
    ("protocols", "versions"),
    [
        ({"TLSv1.2", "TLSv1.3"}, {"TLSv1.2", "TLSv1.3"}),
        ({"TLSv1.3"}, {"TLSv1.3"}),
        ({"TLSv1.2"}, {"TLSv1.2"}),
        ({"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}, {"TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"}),
        ({"TLSv1", "TLSv1.2"}, {"TLSv1", "TLSv1.2"}),  # without one in the middle
        ({"SSLv2", "TLSv1.2"}, {"TLSv1.2"}),
    ],
)
def test_ssl_protocols_selects_versions(
    server_certificate: Issued, protocols: set[str], versions: set[str]
) -> None:
    tls = server_tls(server_certificate, ssl_protocols=frozenset(protocols), **OLD)
    options = {"TLSv1": "-tls1", "TLSv1.1": "-tls1_1", "TLSv1.2": "-tls1_2", "TLSv1.3": "-tls1_3"}
    negotiated = {
        version
        for version, option in options.items()
        if f"{version} resumed=" in s_client_output(tls, option, *OLD_CLIENT)
    }
    assert negotiated == versions


def test_unsupported_protocol_is_a_notice(server_certificate: Issued) -> None:
    (notice,) = server_tls(server_certificate, ssl_protocols=frozenset({"SSLv2", "TLSv1.3"})).notices
    assert str(notice) == f"servers[imap].ssl_protocols: {ssl.OPENSSL_VERSION} has no SSLv2: ignored"


def test_no_supported_protocol_is_a_problem(server_certificate: Issued) -> None:
    assert "has none of SSLv2" in problem(server_certificate, ssl_protocols=frozenset({"SSLv2"}))


def test_invalid_ciphers_are_a_problem(server_certificate: Issued) -> None:
    assert problem(server_certificate, ssl_ciphers="nonsense").startswith(
        'servers[imap].ssl_ciphers: SSL_CTX_set_cipher_list("nonsense") failed: '
    )


@pytest.mark.parametrize(
    ("prefer", "chosen"), [(True, "ECDHE-ECDSA-AES256-GCM-SHA384"), (False, "ECDHE-ECDSA-AES128-GCM-SHA256")]
)
def test_ssl_prefer_server_ciphers_sets_order(server_certificate: Issued, prefer: bool, chosen: str) -> None:
    ciphers = "ECDHE-ECDSA-AES256-GCM-SHA384:ECDHE-ECDSA-AES128-GCM-SHA256"
    tls = server_tls(server_certificate, ssl_ciphers=ciphers, ssl_prefer_server_ciphers=prefer, **TLS12)
    context = client_context()
    context.set_ciphers(":".join(reversed(ciphers.split(":"))))
    assert connect_once(tls, context)[0].cipher == chosen


@pytest.mark.parametrize(
    ("groups", "offered", "chosen"),
    [
        ("auto", "X25519", "X25519"),
        ("auto", "P-256", "prime256v1"),
        ("secp384r1", "P-256:P-384", "secp384r1"),
        ("X25519:prime256v1", "P-384:P-256", "prime256v1"),
    ],
)
def test_ssl_ecdh_curve_selects_groups(
    server_certificate: Issued, groups: str, offered: str, chosen: str
) -> None:
    pair = TlsPair(server_tls(server_certificate, ssl_ecdh_curve=groups), client_context())
    native = load_openssl()
    assert isinstance(native, OpenSsl)
    client = native.connection(pair.client._sslobj)  # type: ignore[attr-defined]
    assert native.lib.SSL_ctrl(client, SET_GROUPS_LIST, 0, offered.encode()) == 1
    pair.handshake()
    assert native.lib.SSL_ctrl(client, GET_NEGOTIATED_GROUP, 0, None) == NIDS[chosen]
    pair.close()


def test_unknown_groups_are_a_problem(server_certificate: Issued) -> None:
    assert problem(server_certificate, ssl_ecdh_curve="X25519:nonsense").startswith(
        'servers[imap].ssl_ecdh_curve: SSL_CTX_set1_curves_list("X25519:nonsense") failed: '
    )


DH = b"""-----BEGIN DH PARAMETERS-----
MIIBCAKCAQEA//////////+t+FRYortKmq/cViAnPTzx2LnFg84tNpWp4TZBFGQz
+8yTnc4kmz75fS/jY2MMddj2gbICrsRhetPfHtXV/WVhJDP1H18GbtCFY2VVPe0a
87VXE15/V8k1mE8McODmi3fipona8+/och3xWKE2rec1MKzKT0g6eXq8CrGCsyT7
YdEIqUuyyOP7uWrat2DX9GgdT0Kj3jlN9K5W7edjcrsZCwenyO4KbXCeAvzhzffi
7MA0BM0oNC9hkXL+nOmFg/+OTxIy7vKBg8P+OxtMb61zO7X8vC7CIAXFjvGDfRaD
ssbzSibBsu/6iGtCOGEoXJf//////////wIBAg==
-----END DH PARAMETERS-----
"""


def test_dh_ciphers_need_ssl_dhparam(rsa: Issued, tmp_path: Path) -> None:
    parameters = tmp_path / "dh.pem"
    parameters.write_bytes(DH)
    context = client_context()
    context.set_ciphers("DHE-RSA-AES128-GCM-SHA256")
    ciphers: dict[str, Any] = {"ssl_ciphers": "DHE-RSA-AES128-GCM-SHA256", **TLS12}
    tls = server_tls(rsa, ssl_dhparam=str(parameters), **ciphers)
    assert connect_once(tls, context)[0].cipher == "DHE-RSA-AES128-GCM-SHA256"
    assert "handshake failure" in s_client_output(server_tls(rsa, **ciphers), "-tls1_2")


def test_invalid_dhparam_file_is_a_problem(server_certificate: Issued, tmp_path: Path) -> None:
    bad = tmp_path / "dh.pem"
    bad.write_bytes(b"nothing")
    assert problem(server_certificate, ssl_dhparam=str(bad)).startswith(
        f'servers[imap].ssl_dhparam: cannot load "{bad}": '
    )
    assert problem(server_certificate, ssl_dhparam="/nonexistent").endswith(
        'cannot read "/nonexistent": No such file or directory'
    )


def test_ssl_conf_command_overrides_directives(server_certificate: Issued) -> None:
    commands = (("Ciphersuites", "TLS_AES_128_GCM_SHA256"), ("Protocol", "-TLSv1.2"))
    tls = server_tls(server_certificate, ssl_conf_command=commands)
    assert connect_once(tls, client_context())[0].cipher == "TLS_AES_128_GCM_SHA256"
    assert "resumed=" not in s_client_output(tls, "-tls1_2")


def test_every_failed_ssl_conf_command_is_a_problem(server_certificate: Issued) -> None:
    output = problem(
        server_certificate,
        ssl_conf_command=(("Nonsense", "x"), ("Ciphersuites", "y"), ("Options", "PrioritizeChaCha")),
    )
    first, second = output.split("\n")
    assert first.startswith('servers[imap].ssl_conf_command[0]: SSL_CONF_cmd("Nonsense", "x") failed: ')
    assert second.startswith('servers[imap].ssl_conf_command[1]: SSL_CONF_cmd("Ciphersuites", "y") failed: ')


def test_unsupported_certificate_compression_is_a_notice(server_certificate: Issued) -> None:
    tls = server_tls(server_certificate, ssl_certificate_compression=True)
    notices = [str(notice) for notice in tls.notices]
    assert notices == [
        f"servers[imap].ssl_certificate_compression: {ssl.OPENSSL_VERSION} cannot do it: ignored"
    ] or (ssl.OPENSSL_VERSION_INFO >= (3, 2))
    assert connect_once(tls, client_context())[0].version == "TLSv1.3"


def test_renegotiation_is_disabled(server_certificate: Issued) -> None:
    assert server_tls(server_certificate, **TLS12).params.context.options & ssl.OP_NO_RENEGOTIATION


def test_handshake_works_after_failed_build(server_certificate: Issued) -> None:
    problem(server_certificate, ssl_conf_command=(("Nonsense", "x"),), ssl_ecdh_curve="nonsense")
    pair = TlsPair(server_tls(server_certificate), client_context())
    assert pair.handshake().version == "TLSv1.3"
    pair.close()


@pytest.mark.parametrize(
    ("offered", "negotiated"),
    [
        ("imap", "alpn=imap"),
        ("h2,imap", "alpn=imap"),
        ("h2", "no application protocol"),
        ("pop3", "no application"),
    ],
)
def test_openssl_client_alpn(server_certificate: Issued, offered: str, negotiated: str) -> None:
    assert negotiated in s_client_output(server_tls(server_certificate), "-alpn", offered)
