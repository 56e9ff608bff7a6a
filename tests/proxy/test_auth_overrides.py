# SPDX-License-Identifier: Apache-2.0
"""Directives for one login from the authentication service (``auth_http_overrides``)."""

from __future__ import annotations

import contextlib
import re
from base64 import b64encode
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.auth_http.overrides import HEADERS, MAX_TIMEOUT, read_overrides
from mailproxy.enums import AuthErrorReason, Method, UpstreamTlsFailure
from mailproxy.errors import InvalidAuthResponse
from mailproxy.protocols.types import AuthAllowed, Overrides, Secret, UpstreamLogin
from mailproxy.session.login_overrides import MAX_VARIANTS, connect_for_login, variant_of
from mailproxy_config.model import (
    AuthHttp,
    ListenConfig,
    Protocol,
    ProxySsl,
    Seconds,
    SendIdentity,
    SendProxyProtocol,
    ServerConfig,
    XclientMode,
)
from mailproxy_config.upstream_login import ProxyAuth, ProxyMasterUser
from support import configs
from support.loopback_worker import Builder, LoopbackWorker, Peer, http_response, loopback_worker, run
from support.tls_authority import Authority, Issued
from support.upstream_tls import Connection, mail_server, server_context, session

IMAP, POP3, SMTP = Protocol.IMAP, Protocol.POP3, Protocol.SMTP
PASSWORD: Final = b"correct-horse"


def head(*lines: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nAuth-Status: OK\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"


def read(*lines: bytes, protocol: Protocol = IMAP, **directives: Any) -> Overrides:
    server = configs.server(protocol, **directives)
    return read_overrides(head(*lines), server, password=Secret(PASSWORD), sent=None)


# --- reading the headers ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "protocol", "overrides"),
    [
        (b"X-MailProxy-Ssl: on", IMAP, {"proxy_ssl": ProxySsl.ENABLED}),
        (b"x-mailproxy-ssl:STARTTLS ", POP3, {"proxy_ssl": ProxySsl.STARTTLS}),
        (b"X-MailProxy-Ssl: off", SMTP, {}),  # as in the configuration
        (b"X-MailProxy-Ssl-Name: Mail.Example", IMAP, {"proxy_ssl_name": "mail.example"}),
        (b"X-MailProxy-Ssl-Name: 2001:db8::1", IMAP, {"proxy_ssl_name": "2001:db8::1"}),
        (b"X-MailProxy-Xclient: off", SMTP, {"xclient": False}),
        (b"X-MailProxy-Xclient: on", SMTP, {}),
        (b"X-MailProxy-Xclient: auto", SMTP, {"xclient_mode": XclientMode.AUTO}),
        (b"X-MailProxy-Xclient: required", SMTP, {"xclient_mode": XclientMode.REQUIRED}),
        (b"X-MailProxy-Xclient: on", POP3, {"proxy_pop3_xclient": SendIdentity.AUTO}),
        (b"X-MailProxy-Xclient: required", POP3, {"proxy_pop3_xclient": SendIdentity.REQUIRED}),
        (b"X-MailProxy-Xclient: on", IMAP, {}),  # there is no XCLIENT in IMAP
        (b"X-MailProxy-Id: auto", IMAP, {"proxy_id": SendIdentity.AUTO}),
        (b"X-MailProxy-Proxy-Protocol: v2", IMAP, {"proxy_protocol": SendProxyProtocol.V2}),
        (b"X-MailProxy-Timeout: 10", IMAP, {"timeout": Seconds(10.0)}),
        (b"X-MailProxy-Timeout: 600s", IMAP, {"timeout": Seconds(600.0)}),
        (b"X-MailProxy-Auth: native", IMAP, {}),
        (b"X-MailProxy-Auth: Plain", IMAP, {"proxy_auth": (ProxyAuth.PLAIN,)}),
        (
            b"x-mailproxy-auth: xoauth2,oauthbearer , Native",
            SMTP,
            {"proxy_auth": (ProxyAuth.XOAUTH2, ProxyAuth.OAUTHBEARER, ProxyAuth.NATIVE)},
        ),
        (b"X-MailProxy-Auth: login, external", POP3, {"proxy_auth": (ProxyAuth.LOGIN, ProxyAuth.EXTERNAL)}),
        (b"X-Other: x-mailproxy-ssl: on", IMAP, {}),
    ],
)
def test_header_is_a_directive_for_one_login(
    line: bytes, protocol: Protocol, overrides: dict[str, object]
) -> None:
    assert dict(read(line, protocol=protocol)) == overrides


def test_overrides_are_sorted_so_that_equal_ones_are_found() -> None:
    lines = (b"X-MailProxy-Timeout: 5", b"X-MailProxy-Ssl: on", b"X-MailProxy-Id: required")
    assert read(*lines) == read(*reversed(lines))
    assert [name for name, _ in read(*lines)] == ["proxy_id", "proxy_ssl", "timeout"]


@pytest.mark.parametrize(
    ("line", "protocol", "reason"),
    [
        (b"X-MailProxy-Ssl: maybe", IMAP, 'X-MailProxy-Ssl "maybe" is not one of off, on, starttls'),
        (b"X-MailProxy-Ssl:", IMAP, 'X-MailProxy-Ssl "" is not one of off, on, starttls'),
        (
            b"X-MailProxy-Ssl-Name: a b",
            IMAP,
            'X-MailProxy-Ssl-Name "a b" is not a host name or an IP address',
        ),
        (b"X-MailProxy-Ssl-Name: a\x00b", IMAP, r"is not a host name or an IP address"),
        (b"X-MailProxy-Ssl-Name: " + b"a" * 254, IMAP, "of at most 253 characters"),
        (b"X-MailProxy-Ssl-Name: \xc3\xa4", IMAP, 'X-MailProxy-Ssl-Name "\\xc3\\xa4" is not ASCII'),
        (b"X-MailProxy-Xclient: x", SMTP, 'X-MailProxy-Xclient "x" is not one of off, on, auto, required'),
        (b"X-MailProxy-Id: on", IMAP, 'X-MailProxy-Id "on" is not one of off, auto, required'),
        (b"X-MailProxy-Proxy-Protocol: v3", IMAP, '"v3" is not one of off, v1, v2'),
        (b"X-MailProxy-Auth:", IMAP, '"" is not a list, without repetitions, of native, plain, login, '),
        (b"X-MailProxy-Auth: plain,", IMAP, '"plain," is not a list, without repetitions, of native, '),
        (b"X-MailProxy-Auth: plain plain", IMAP, "is not a list, without repetitions, of native, plain"),
        (b"X-MailProxy-Auth: plain, Plain", IMAP, "is not a list, without repetitions, of native, plain"),
        (b"X-MailProxy-Auth: cram-md5", IMAP, "is not a list, without repetitions, of native, plain, login"),
        (b"X-MailProxy-Timeout: 0", IMAP, 'X-MailProxy-Timeout "0" is not a number of seconds from 1 to 600'),
        (b"X-MailProxy-Timeout: 601", IMAP, "from 1 to 600"),
        (b"X-MailProxy-Timeout: 1m", IMAP, "from 1 to 600"),
        (b"X-MailProxy-Verify: off", IMAP, "X-MailProxy-Verify is not known; there are X-MailProxy-Ssl, "),
        (b"X-MailProxy-" + b"x" * 9000 + b": 1", IMAP, "is not known"),
    ],
)
def test_invalid_header_makes_the_response_invalid(line: bytes, protocol: Protocol, reason: str) -> None:
    with pytest.raises(InvalidAuthResponse, match=re.escape(reason)) as raised:
        read(line, protocol=protocol)
    assert len(str(raised.value)) < 400


def test_header_twice_is_invalid() -> None:
    with pytest.raises(InvalidAuthResponse, match="X-MailProxy-Id is in the response twice"):
        read(b"X-MailProxy-Id: auto", b"x-mailproxy-id: auto")


def test_password_is_not_in_the_error() -> None:
    with pytest.raises(InvalidAuthResponse, match=r'X-MailProxy-Ssl "\*\*\*" is not one of'):
        read(b"X-MailProxy-Ssl: " + PASSWORD)


REQUIRED: Final = SendIdentity.REQUIRED


@pytest.mark.parametrize(
    ("line", "protocol", "directives", "reason"),
    [
        (
            b"X-MailProxy-Ssl: off",
            IMAP,
            {"proxy_ssl": ProxySsl.STARTTLS},
            "with proxySsl in the configuration",
        ),
        (
            b"X-MailProxy-Ssl: off",
            IMAP,
            {"proxy_ssl": ProxySsl.ENABLED},
            "with proxySsl in the configuration",
        ),
        (b"X-MailProxy-Id: auto", IMAP, {"proxy_id": REQUIRED}, "with proxyId: Required"),
        (b"X-MailProxy-Id: off", IMAP, {"proxy_id": REQUIRED}, "with proxyId: Required"),
        (b"X-MailProxy-Xclient: off", POP3, {"proxy_pop3_xclient": REQUIRED}, "with proxyXclient: Required"),
        (
            b"X-MailProxy-Xclient: on",
            SMTP,
            {"xclient_mode": XclientMode.REQUIRED},
            "with xclientMode: Required",
        ),
        (
            b"X-MailProxy-Auth: native",
            SMTP,
            {"proxy_auth": (ProxyAuth.PLAIN,), "proxy_smtp_auth": False},
            "with proxyAuth in the configuration, and without proxySmtpAuth",
        ),
    ],
)
def test_header_does_not_weaken_what_the_configuration_requires(
    line: bytes, protocol: Protocol, directives: dict[str, Any], reason: str
) -> None:
    with pytest.raises(InvalidAuthResponse, match=reason):
        read(line, protocol=protocol, **directives)


@pytest.mark.parametrize("mode", [ProxySsl.ENABLED, ProxySsl.STARTTLS])
def test_header_chooses_between_both_kinds_of_tls(mode: ProxySsl) -> None:
    other = ProxySsl.STARTTLS if mode is ProxySsl.ENABLED else ProxySsl.ENABLED
    word = {ProxySsl.ENABLED: b"on", ProxySsl.STARTTLS: b"starttls"}[other]
    assert read(b"X-MailProxy-Ssl: " + word, proxy_ssl=mode) == (("proxy_ssl", other),)


def test_no_header_changes_the_verification() -> None:
    reachable = {"proxy_ssl", "proxy_ssl_name", "proxy_protocol", "proxy_id", "timeout"}
    reachable |= {"xclient", "xclient_mode", "proxy_pop3_xclient", "proxy_auth"}
    words = ("plain", "off", "on", "starttls", "auto", "required", "v1", "v2", "7", "mail.example")
    found = set()
    for name in HEADERS:
        for word in words:
            for protocol in Protocol:
                try:
                    overrides = read(f"{name}: {word}".encode(), protocol=protocol)
                except InvalidAuthResponse:
                    continue
                found |= {directive for directive, _ in overrides}
    assert found == reachable


@given(
    value=st.binary(max_size=80).filter(lambda value: not {10, 13} & set(value)),
    name=st.sampled_from(HEADERS),
)
def test_any_value_is_read_or_invalid(value: bytes, name: str) -> None:
    try:
        overrides = dict(read(name.encode() + b": " + value))
    except InvalidAuthResponse:
        return
    assert re.fullmatch(r"[a-z0-9.:_-]*", str(overrides.get("proxy_ssl_name", "")))


def test_every_header_and_limit_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs/auth-http.md").read_text()
    assert all(f"`{name}`" in page for name in HEADERS)
    assert f"1 to {MAX_TIMEOUT} seconds" in page


# --- logins -----------------------------------------------------------------------------------------

NAME: Final = "mail.example.com"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def issued(authority: Authority) -> Issued:
    return authority.issue(names=(NAME,))


def proxy(protocol: Protocol = IMAP, **directives: Any) -> Builder:
    values: dict[str, Any] = {"auth_http_overrides": True, **directives}

    def builder(auth: AuthHttp, listen: ListenConfig) -> ServerConfig:
        return configs.server(protocol, auth_http=auth, listen=(listen,), **values)

    return builder


def allow(port: int | str, *lines: str) -> bytes:
    text = f"Auth-Status: OK\r\nAuth-Server: 127.0.0.1\r\nAuth-Port: {port}\r\n"
    return http_response(text + "".join(line + "\r\n" for line in lines))


async def log_in(w: LoopbackWorker) -> bytes:
    client: Peer = await w.client()
    await client.read_line()
    return await client.exchange(b"a LOGIN alice correct-horse\r\n")


def variants(w: LoopbackWorker) -> list[Overrides]:
    [listener] = w.app.listeners
    return list(listener.default.server.variants)


def test_logins_of_one_listener_use_tls_or_not(authority: Authority, issued: Issued) -> None:
    with mail_server(session(IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            tls = allow(upstream.port, "X-MailProxy-Ssl: on", f"X-MailProxy-Ssl-Name: {NAME}")
            build = proxy(proxy_ssl_trusted_certificate=authority.file)
            async with loopback_worker(build, tls, allow("{port}"), tls) as w:
                assert await log_in(w) == b"a OK logged in\r\n"
                plain = await w.client()
                await plain.read_line()
                await plain.send(b"b LOGIN alice correct-horse\r\n")
                peer = await w.upstream.accept()
                await peer.send(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
                assert (await peer.read_line()).startswith(b"b LOGIN {5+}")
                assert await log_in(w) == b"a OK logged in\r\n"
                assert len(variants(w)) == 1
                name = "mailproxy_upstream_tls_handshake_seconds"
                assert sum(w.value(name, IMAP, "true")[1:]) == 1

        run(play)
        assert upstream.received_in_clear() == b""


def test_header_cannot_turn_off_tls(authority: Authority, issued: Issued) -> None:
    with mail_server(session(IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            build = proxy(proxy_ssl=ProxySsl.ENABLED, proxy_ssl_trusted_certificate=authority.file)
            async with loopback_worker(build, allow(upstream.port, "X-MailProxy-Ssl: off")) as w:
                assert await log_in(w) == b"* BAD internal server error\r\n"
                assert 'X-MailProxy-Ssl \\"off\\" is not allowed with proxySsl' in w.read_log()
                assert w.value("mailproxy_auth_errors_total", AuthErrorReason.INVALID_RESPONSE) == 1

        run(play)
        assert upstream.received() == b""


def test_certificate_is_verified_for_the_name_of_each_login(authority: Authority, issued: Issued) -> None:
    """A session that was verified for one name is not resumed for another."""
    with mail_server(session(IMAP, ProxySsl.ENABLED), server_context(issued)) as upstream:

        async def play() -> None:
            good = allow(upstream.port, f"X-MailProxy-Ssl-Name: {NAME}")
            bad = allow(upstream.port, "X-MailProxy-Ssl-Name: other.example")
            build = proxy(proxy_ssl=ProxySsl.ENABLED, proxy_ssl_trusted_certificate=authority.file)
            async with loopback_worker(build, good, bad, good, bad) as w:
                for expected in (b"a OK logged in\r\n", b"* BAD internal server error\r\n") * 2:
                    assert await log_in(w) == expected
                failures = w.value("mailproxy_upstream_tls_failures_total", IMAP, UpstreamTlsFailure.NAME)
                assert failures == 2

        run(play)


def test_headers_have_no_effect_without_the_directive() -> None:
    async def play() -> None:
        answer = allow("{port}", "X-MailProxy-Ssl: on", "X-MailProxy-Nonsense: 1")
        async with loopback_worker(proxy(auth_http_overrides=False), answer) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            peer = await w.upstream.accept()
            await peer.send(b"* OK [CAPABILITY IMAP4rev1 LITERAL+] ready\r\n")
            assert (await peer.read_line()).startswith(b"a LOGIN {5+}")

    run(play)


def test_headers_of_a_denial_have_no_effect() -> None:
    async def play() -> None:
        denial = http_response("Auth-Status: No\r\nX-MailProxy-Nonsense: 1\r\n")
        async with loopback_worker(proxy(), denial) as w:
            assert await log_in(w) == b"a NO No\r\n"

    run(play)


def test_proxy_header_and_id_of_one_login() -> None:
    async def play() -> None:
        lines = ("X-MailProxy-Proxy-Protocol: v1", "X-MailProxy-Id: required")
        async with loopback_worker(proxy(), allow("{port}", *lines)) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            peer = await w.upstream.accept()
            assert (await peer.read_line()).startswith(b"PROXY TCP4 127.0.0.1 127.0.0.1 ")
            await peer.send(b"* OK [CAPABILITY IMAP4rev1 ID LITERAL+] ready\r\n")
            line = await peer.read_line()
            assert line.startswith(b'x3 ID ("x-session-id"')
            assert b'"x-connected-port" "%d"' % w.port in line

    run(play)


def test_login_without_xclient() -> None:
    async def play() -> None:
        answer = allow("{port}", "X-MailProxy-Xclient: off")
        async with loopback_worker(proxy(SMTP, proxy_smtp_auth=True), answer) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"AUTH PLAIN AGFsaWNlAHB3\r\n")
            peer = await w.upstream.accept()
            await peer.send(b"220 hi\r\n")
            assert await peer.read_line() == b"HELO mail.example.com\r\n"
            await peer.send(b"250 hi\r\n")
            assert (await peer.read_line()).startswith(b"AUTH PLAIN ")

    run(play)


SASL_GREETING: Final = b"* OK [CAPABILITY IMAP4rev1 LITERAL+ SASL-IR AUTH=PLAIN] ready\r\n"


def test_mechanism_of_one_login() -> None:
    """Another login of the same listener is as in the configuration."""

    async def play() -> None:
        plain = allow("{port}", "X-MailProxy-Auth: plain, native")
        async with loopback_worker(proxy(), plain, allow("{port}")) as w:
            for command in (
                b"a AUTHENTICATE PLAIN " + b64encode(b"\0alice\0" + PASSWORD) + b"\r\n",
                b"a LOGIN {5+}\r\n",
            ):
                client = await w.client()
                await client.read_line()
                await client.send(b"a LOGIN alice correct-horse\r\n")
                peer = await w.upstream.accept()
                await peer.send(SASL_GREETING)
                assert await peer.read_line() == command

    run(play)


def test_mechanism_of_one_login_has_the_password_of_the_master_user(tmp_path: Path) -> None:
    (tmp_path / "master").write_text("master secret 7\n")
    master = ProxyMasterUser(user="proxy", password_file=str(tmp_path / "master"))

    async def play() -> None:
        answer = allow("{port}", "X-MailProxy-Auth: plain")
        async with loopback_worker(proxy(proxy_master_user=master), answer) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            peer = await w.upstream.accept()
            await peer.send(SASL_GREETING)
            message = b64encode(b"alice\0proxy\0master secret 7")
            assert await peer.read_line() == b"a AUTHENTICATE PLAIN " + message + b"\r\n"

    run(play)


@pytest.mark.parametrize("mechanism", ["plain", "login", "native", "oauthbearer"])
def test_mechanism_of_one_login_is_not_used_without_required_tls(mechanism: str) -> None:
    async def play() -> None:
        answer = allow("{port}", f"X-MailProxy-Auth: {mechanism}")
        async with loopback_worker(proxy(proxy_auth_require_tls=True), answer) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            peer = await w.upstream.accept()
            await peer.send(SASL_GREETING)
            assert await client.read_line() == b"* BAD internal server error\r\n"
            with contextlib.suppress(ConnectionResetError):  # its greeting may be unread
                assert await peer.read_to_eof() == b""
            assert "proxyAuthRequireTls is true, and proxySsl is Disabled" in w.read_log()
            assert w.value("mailproxy_upstream_config_errors_total", IMAP, "login") == 1

    run(play)


def test_mechanism_of_one_login_is_used_with_required_tls(authority: Authority, issued: Issued) -> None:
    def step(c: Connection) -> None:
        c.start_tls()
        c.send(SASL_GREETING)
        assert c.answer(b"a OK logged in\r\n").startswith(b"a AUTHENTICATE PLAIN ")
        c.recv()

    with mail_server(step, server_context(issued)) as upstream:

        async def play() -> None:
            lines = ("X-MailProxy-Auth: plain", "X-MailProxy-Ssl: on", f"X-MailProxy-Ssl-Name: {NAME}")
            build = proxy(proxy_auth_require_tls=True, proxy_ssl_trusted_certificate=authority.file)
            async with loopback_worker(build, allow(upstream.port, *lines)) as w:
                assert await log_in(w) == b"a OK logged in\r\n"

        run(play)


def test_mechanism_of_one_login_that_needs_a_token_is_a_configuration_error_without_one() -> None:
    async def play() -> None:
        answer = allow("{port}", "X-MailProxy-Auth: xoauth2")
        async with loopback_worker(proxy(), answer) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            peer = await w.upstream.accept()
            await peer.send(SASL_GREETING)
            assert await client.read_line() == b"* BAD internal server error\r\n"
            with contextlib.suppress(ConnectionResetError):  # its greeting may be unread
                assert await peer.read_to_eof() == b""
            assert "proxyAuth lists no mechanism for passwords" in w.read_log()
            assert w.value("mailproxy_upstream_config_errors_total", IMAP, "login") == 1

    run(play)


@pytest.mark.parametrize(("word", "next_command"), [("yes", b"AUTH PLAIN "), ("no", None)])
def test_mechanism_of_one_login_depends_on_auth_smtp(word: str, next_command: bytes | None) -> None:
    async def play() -> None:
        answer = allow("{port}", "X-MailProxy-Auth: plain", "X-MailProxy-Xclient: off", f"Auth-SMTP: {word}")
        async with loopback_worker(proxy(SMTP), answer) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"AUTH PLAIN AGFsaWNlAHB3\r\n")
            peer = await w.upstream.accept()
            await peer.send(b"220 hi\r\n")
            assert (await peer.read_line())[:5] in {b"EHLO ", b"HELO "}
            await peer.send(b"250-hi\r\n250 AUTH PLAIN\r\n")
            if next_command is None:
                assert await client.read_line() == b"235 2.0.0 OK\r\n"
            else:
                assert (await peer.read_line()).startswith(next_command)

    run(play)


def test_timeout_of_one_login() -> None:
    async def play() -> None:
        async with loopback_worker(proxy(), allow("{port}", "X-MailProxy-Timeout: 1")) as w:
            client = await w.client()
            await client.read_line()
            await client.send(b"a LOGIN alice correct-horse\r\n")
            await w.upstream.accept()  # it never greets
            assert await client.read_to_eof() == b"* BAD internal server error\r\n"
            assert "stage=greeting" in w.read_log()

    run(play)


def test_number_of_kept_overrides_is_limited() -> None:
    async def play() -> None:
        async with loopback_worker(proxy(), allow("{port}")) as w:
            [listener] = w.app.listeners
            server, context = listener.default.server, w.app.context
            for seconds in range(1, MAX_VARIANTS + 10):
                variant_of(server, context, (("timeout", Seconds(float(seconds))),))
            assert len(server.variants) == MAX_VARIANTS
            latest = (("timeout", Seconds(float(MAX_VARIANTS + 9))),)
            assert variant_of(server, context, latest) is variant_of(server, context, latest)
            assert len(server.variants) == MAX_VARIANTS

    run(play)


def test_next_login_of_a_session_has_only_its_own_overrides() -> None:
    """A session may log in again after an outage, with another response."""

    async def play() -> None:
        async with loopback_worker(proxy(), allow("{port}")) as w:
            [listener] = w.app.listeners
            server = listener.default.server
            session: Any = SimpleNamespace(context=w.app.context, server=server)
            seen: list[Seconds] = []

            def connect(of: Any, _: UpstreamLogin) -> None:
                seen.append(of.server.upstream.server.timeout)

            for timeout in (5.0, 7.0, 5.0, 0.0):
                overrides = (("timeout", Seconds(timeout)),) if timeout else ()
                grant = AuthAllowed("192.0.2.1", 143, b"alice", overrides=overrides)
                connect_for_login(session.server, connect, session, UpstreamLogin(grant, Method.PLAIN))
            assert seen == [5.0, 7.0, 5.0, 60.0]
            assert session.server is server
            assert [dict(each)["timeout"] for each in server.variants] == [7.0, 5.0]
            assert all(not variant.variants for variant in server.variants.values())

    run(play)
