# SPDX-License-Identifier: Apache-2.0
"""The client's identity for upstreams: IMAP ID, POP3 XCLIENT, and the XCLIENT that an SMTP upstream lists."""

from __future__ import annotations

import re
from base64 import b64decode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method, UpstreamStage
from mailproxy.errors import ProxyLoopError, UpstreamError, UpstreamGuardError, UpstreamRefused
from mailproxy.protocols.client_identity import (
    MAX_ID_LINE,
    MAX_LINE,
    MAX_POP3_LINE,
    Fact,
    forwarded_facts,
    imap_id,
    pop3_xclient,
    smtp_xclient,
    xtext,
)
from mailproxy.protocols.imap.upstream import ImapUpstream
from mailproxy.protocols.pop3.upstream import Pop3Upstream
from mailproxy.protocols.real_ip import TrustedPeers, apply_real_ip
from mailproxy.protocols.smtp.upstream import SmtpUpstream
from mailproxy.protocols.types import (
    AuthAllowed,
    Client,
    ProxyAddresses,
    Secret,
    TlsInfo,
    UpstreamLogin,
)
from mailproxy_config.model import Protocol, ProxySsl, SendIdentity, XclientMode
from support import configs
from support.generator_driver import Driven, drive

SESSION = "0f3a-1c"
ALL = frozenset(b"NAME ADDR PROTO HELO PORT LOGIN DESTADDR DESTPORT".split())
AUTO, REQUIRED = SendIdentity.AUTO, SendIdentity.REQUIRED


def client(address: str = "192.0.2.1", *, tls: TlsInfo | None = None) -> Client:
    return Client(address, 4711, "198.51.100.7", 993, tls=tls, host=b"host.example", session_id=SESSION)


def login(protocol: Protocol, *, user: bytes = b"alice", helo: bytes | None = b"me") -> UpstreamLogin:
    grant = AuthAllowed("192.0.2.10", 25, user, Secret(b"secret"))
    esmtp = protocol is Protocol.SMTP
    return UpstreamLogin(grant, Method.PLAIN, tag=b"a", helo=helo, esmtp=esmtp)


# --- the commands -----------------------------------------------------------------------------------


def test_imap_id_has_the_keys_of_dovecot() -> None:
    assert imap_id(client(), b"x3") == (
        b'x3 ID ("x-session-id" "0f3a-1c" "x-originating-ip" "192.0.2.1" "x-originating-port" "4711" '
        b'"x-connected-ip" "198.51.100.7" "x-connected-port" "993" "x-proxy-ttl" "6" '
        b'"x-client-transport" "insecure")\r\n'
    )


def test_pop3_xclient_has_the_words_of_dovecot() -> None:
    assert pop3_xclient(client("2001:db8::1", tls=TlsInfo("TLSv1.3", "c", server_name=b"mail.example"))) == (
        b"XCLIENT ADDR=2001:db8::1 PORT=4711 DESTADDR=198.51.100.7 DESTPORT=993 SESSION=0f3a-1c TTL=6 "
        b"CLIENT-TRANSPORT=TLS DESTNAME=mail.example\r\n"
    )


def test_smtp_xclient_has_only_what_is_offered() -> None:
    of = login(Protocol.SMTP, user=b"bob+1@example.org", helo=b"my host")
    assert smtp_xclient(client("2001:db8::1"), of, ALL, has_login=True) == [
        b"XCLIENT ADDR=IPV6:2001:db8::1 PORT=4711 DESTADDR=198.51.100.7 DESTPORT=993 NAME=host.example "
        b"HELO=my+20host PROTO=ESMTP LOGIN=bob+2B1@example.org\r\n"
    ]
    assert smtp_xclient(client(), of, frozenset({b"ADDR"}), has_login=True) == [b"XCLIENT ADDR=192.0.2.1\r\n"]
    assert smtp_xclient(client(), of, frozenset({b"REVERSE_NAME"}), has_login=True) == []
    [line] = smtp_xclient(client(), of, ALL, has_login=False)
    assert b"LOGIN" not in line


def test_smtp_xclient_is_split_at_512_bytes() -> None:
    of = login(Protocol.SMTP, user=b"u" * 250, helo=b"h" * 250)
    lines = smtp_xclient(client(), of, ALL, has_login=True)
    assert len(lines) == 2
    assert all(line.startswith(b"XCLIENT ") and len(line) <= 512 for line in lines)
    assert b"LOGIN=" + b"u" * 250 in lines[1]


def test_attribute_that_postfix_does_not_accept_is_left_out() -> None:
    of = login(Protocol.SMTP, user=b"u" * 256, helo=b"")
    [line] = smtp_xclient(client(), of, ALL, has_login=True)
    assert b"LOGIN" not in line
    assert b"HELO" not in line


@pytest.mark.parametrize("name", [b'a"b', b"a b", b"a\r\nb", b"", b"a..b", b"x" * 254, b"\xc3\xa4.example"])
def test_server_name_that_is_no_host_name_is_left_out(name: bytes) -> None:
    of = client(tls=TlsInfo("TLSv1.3", "c", server_name=name))
    assert b"x-connected-name" not in imap_id(of, b"x3")
    assert b"DESTNAME" not in pop3_xclient(of)


def test_unix_client_has_no_addresses() -> None:
    of = Client("unix:", session_id=SESSION)
    assert b"x-originating-ip" not in imap_id(of, b"x3")
    assert b"ADDR" not in pop3_xclient(of)
    assert smtp_xclient(of, login(Protocol.SMTP), frozenset({b"ADDR", b"PORT"}), has_login=True) == []


@given(user=st.binary(max_size=80), helo=st.binary(max_size=80), name=st.binary(max_size=80))
def test_no_byte_of_a_client_ends_a_line_or_a_string(user: bytes, helo: bytes, name: bytes) -> None:
    of = client(tls=TlsInfo("TLSv1.3", "c", server_name=name))
    lines = [
        imap_id(of, b"x3"),
        pop3_xclient(of),
        *smtp_xclient(of, login(Protocol.SMTP, user=user, helo=helo), ALL, has_login=True),
    ]
    for line in lines:
        assert re.fullmatch(rb"[ -~]*\r\n", line)
    assert lines[0].count(b'"') % 4 == 0


def test_destination_of_a_believed_proxy_header_is_the_connected_address() -> None:
    of = client()
    of.proxied = ProxyAddresses(b"203.0.113.9", b"203.0.113.1", 5555, 143)
    assert apply_real_ip(of, TrustedPeers(["192.0.2.1"]))
    assert b'"x-originating-ip" "203.0.113.9"' in imap_id(of, b"x3")
    assert b'"x-connected-ip" "203.0.113.1" "x-connected-port" "143"' in imap_id(of, b"x3")


def test_destination_of_a_proxy_header_from_strangers_is_not_used() -> None:
    of = client()
    of.proxied = ProxyAddresses(b"203.0.113.9", b"203.0.113.1", 5555, 143)
    assert not apply_real_ip(of, TrustedPeers([]))
    assert b'"x-connected-ip" "198.51.100.7"' in imap_id(of, b"x3")


# --- facts of proxy_forward -------------------------------------------------------------------------


def facts(*pairs: tuple[str, str], protocol: Protocol = Protocol.IMAP) -> tuple[Fact, ...]:
    return forwarded_facts(configs.server(protocol, proxy_forward=pairs))


def forwarded(line: bytes, *, xtext_encoded: bool = False) -> bytes:
    """Return the content of FORWARD in an XCLIENT command."""
    value = line.split(b" FORWARD=")[1].removesuffix(b"\r\n")
    if xtext_encoded:
        value = re.sub(rb"\+([0-9A-F]{2})", lambda found: bytes.fromhex(found[1].decode()), value)
    return b64decode(value, validate=True)


SITE = (("site", "east-$protocol"), ("port", "${remote_port}"))


def test_facts_follow_the_keys_of_dovecot_in_imap_id() -> None:
    line = imap_id(client(), b"x3", facts(*SITE))
    assert line.startswith(imap_id(client(), b"x3").removesuffix(b")\r\n"))
    assert line.endswith(b' "x-forward-site" "east-imap" "x-forward-port" "4711")\r\n')


def test_facts_are_one_word_in_pop3_xclient() -> None:
    line = pop3_xclient(client(), facts(*SITE, protocol=Protocol.POP3))
    assert line.startswith(pop3_xclient(client()).removesuffix(b"\r\n") + b" FORWARD=")
    assert forwarded(line) == b"site=east-pop3\tport=4711"


def test_facts_are_in_smtp_xclient_if_forward_is_listed() -> None:
    of, prepared = login(Protocol.SMTP), facts(("a", ">>>???~"), protocol=Protocol.SMTP)
    [line] = smtp_xclient(client(), of, frozenset({b"FORWARD"}), has_login=True, facts=prepared)
    assert line == b"XCLIENT FORWARD=" + xtext(b"YT0+Pj4/Pz9+") + b"\r\n"
    assert b"+2B" in line  # base64's plus sign in xtext
    assert forwarded(line, xtext_encoded=True) == b"a=>>>???~"
    assert smtp_xclient(client(), of, frozenset({b"ADDR"}), has_login=True, facts=prepared) == [
        b"XCLIENT ADDR=192.0.2.1\r\n"
    ]


def test_quotes_and_backslashes_of_facts_are_escaped_in_imap_id() -> None:
    line = imap_id(client(), b"x3", facts(("a", '"\\)')))
    assert line.endswith(b' "x-forward-a" "\\"\\\\)")\r\n')


@pytest.mark.parametrize("name", [b"a\r\nb", b"a\tb", b"\x00", b"\x01", b"\xc3\xa4", b"\x7f"])
def test_fact_with_other_characters_than_printable_ascii_is_left_out(name: bytes) -> None:
    of = client(tls=TlsInfo("TLSv1.3", "c", server_name=name))
    both = facts(("bad", "<$ssl_server_name>"), ("good", "1"))
    assert b"bad" not in imap_id(of, b"x3", both)
    assert b'"x-forward-good" "1"' in imap_id(of, b"x3", both)
    assert forwarded(pop3_xclient(of, both)) == b"good=1"


def test_facts_that_do_not_fit_into_the_line_are_left_out() -> None:
    many = [(f"n{index}", "v" * 1000) for index in range(15)]
    line = imap_id(client(), b"x3", facts(*many, ("last", "1")))
    assert MAX_ID_LINE - 1000 < len(line) <= MAX_ID_LINE
    assert b'"x-forward-n0"' in line
    assert b'"x-forward-n14"' not in line
    assert b'"x-forward-last" "1"' in line
    line = pop3_xclient(client(), facts(("a", "v" * 300), ("b", "v" * 400), ("c", "v" * 300)))
    assert len(line) <= MAX_POP3_LINE
    assert [field[:1] for field in forwarded(line).split(b"\t")] == [b"a", b"c"]
    large = facts(("a", "v" * 200), ("b", "v" * 300), ("c", "v"))
    of, offered = login(Protocol.SMTP), frozenset({b"FORWARD", b"ADDR"})
    lines = smtp_xclient(client(), of, offered, has_login=True, facts=large)
    assert all(len(line) <= MAX_LINE for line in lines)
    assert forwarded(lines[-1], xtext_encoded=True) == b"a=" + b"v" * 200 + b"\tc=v"


def test_no_fact_is_sent_if_none_fits() -> None:
    large = facts(("a", "v" * 1000))
    assert b"FORWARD" not in pop3_xclient(client(), large)
    offered = frozenset({b"FORWARD"})
    assert smtp_xclient(client(), login(Protocol.SMTP), offered, has_login=True, facts=large) == []


@given(value=st.binary(max_size=400), name=st.binary(max_size=300))
def test_no_byte_of_a_fact_ends_a_line_or_a_string(value: bytes, name: bytes) -> None:
    of = client(tls=TlsInfo("TLSv1.3", "c", server_name=name))
    literal: Fact = (b"n", (value, lambda each: (each.tls and each.tls.server_name) or b""))
    line = imap_id(of, b"x3", (literal,))
    assert re.fullmatch(
        rb'x3 ID \("(?:[^"\\\x00-\x1f]|\\["\\])*"(?: "(?:[ !#-\[\]-~]|\\["\\])*")*\)\r\n', line
    )
    offered = frozenset({b"FORWARD"})
    for each in (
        pop3_xclient(of, (literal,)),
        *smtp_xclient(of, login(Protocol.SMTP), offered, has_login=True, facts=(literal,)),
    ):
        assert re.fullmatch(rb"XCLIENT [!-~ ]*\r\n", each)


# --- loops ------------------------------------------------------------------------------------------


def test_ttl_of_the_client_is_sent() -> None:
    of = client()
    of.proxy_ttl = 1
    assert b'"x-proxy-ttl" "1"' in imap_id(of, b"x3")
    assert b" TTL=1 " in pop3_xclient(of)
    assert smtp_xclient(of, login(Protocol.SMTP), frozenset({b"TTL"}), has_login=True) == [
        b"XCLIENT TTL=1\r\n"
    ]


@pytest.mark.parametrize("ttl", [0, -1])
def test_client_without_ttl_is_not_logged_in(ttl: int) -> None:
    of = client()
    of.proxy_ttl = ttl
    imap = ImapUpstream(configs.server(Protocol.IMAP, proxy_id=SendIdentity.AUTO))
    pop3 = Pop3Upstream(configs.server(Protocol.POP3, proxy_pop3_xclient=SendIdentity.AUTO))
    smtp = SmtpUpstream(configs.server(Protocol.SMTP, xclient_mode=XclientMode.AUTO))
    for generator, *replies in (
        (imap.log_in(of, login(Protocol.IMAP)), GREETING),
        (pop3.log_in(of, login(Protocol.POP3)), b"+OK [XCLIENT] hi\r\n"),
        (smtp.log_in(of, login(Protocol.SMTP)), b"220 hi\r\n", LISTED),
    ):
        with pytest.raises(ProxyLoopError, match="proxy loop") as raised:
            drive(generator, *replies)
        assert raised.value.is_misconfigured
        assert raised.value.stage in {UpstreamStage.ID, UpstreamStage.XCLIENT}


# --- IMAP -------------------------------------------------------------------------------------------

GREETING = b"* OK [CAPABILITY IMAP4rev1 ID LITERAL+] hi\r\n"
TRUSTED = b"* ID NIL\r\nx3 OK Trusted ID completed.\r\n"


def imap(*replies: bytes, mode: SendIdentity = AUTO, tag: bytes = b"a") -> Driven:
    of = login(Protocol.IMAP)
    of.tag = tag
    upstream = ImapUpstream(configs.server(Protocol.IMAP, proxy_id=mode))
    return drive(upstream.log_in(client(), of), *replies)


def test_imap_id_is_sent_before_the_login() -> None:
    driven = imap(GREETING, TRUSTED, b"a OK in\r\n")
    assert driven.sent == imap_id(client(), b"x3") + b"a LOGIN {5+}\r\nalice {6+}\r\nsecret\r\n"
    assert driven.result == b"a OK in\r\n"


def test_capabilities_are_requested_if_the_greeting_has_none() -> None:
    driven = imap(b"* OK hi\r\n", b"* CAPABILITY IMAP4rev1 ID LITERAL+\r\nx2 OK\r\n", TRUSTED, b"a OK in\r\n")
    assert driven.sent.startswith(b"x2 CAPABILITY\r\nx3 ID (")
    assert b"LOGIN {5+}" in driven.sent
    assert driven.finished


def test_tags_differ_from_the_tag_of_the_client() -> None:
    driven = imap(GREETING, b"y3 OK Trusted ID completed.\r\n", b"x3 OK in\r\n", tag=b"x3")
    assert driven.sent.startswith(b"y3 ID (")
    assert driven.finished


@pytest.mark.parametrize("reply", [b"x3 BAD unknown\r\n", b"x3 NO no\r\n"])
def test_refused_id_does_not_end_the_login_with_auto(reply: bytes) -> None:
    assert imap(GREETING, reply, b"a OK in\r\n").finished


def test_id_is_not_sent_with_auto_if_it_is_not_listed() -> None:
    driven = imap(b"* OK [CAPABILITY IMAP4rev1 IDLE] hi\r\n")
    assert driven.sent == b"a LOGIN {5}\r\n"


@pytest.mark.parametrize(
    "replies",
    [(b"* OK [CAPABILITY IMAP4rev1] hi\r\n",), (GREETING, b"x3 BAD no\r\n"), (GREETING, b"x3 NO no\r\n")],
)
def test_login_ends_without_id_with_required(replies: tuple[bytes, ...]) -> None:
    with pytest.raises(UpstreamError, match="proxyId requires") as raised:
        imap(*replies, mode=REQUIRED)
    assert raised.value.stage is UpstreamStage.ID


def test_proxy_loop_ends_the_login() -> None:
    with pytest.raises(UpstreamError, match="a proxy loop"):
        imap(GREETING, b"x3 NO [SERVERBUG] Proxy loop\r\n")


def test_bye_instead_of_the_response_to_id_ends_the_login() -> None:
    with pytest.raises(UpstreamRefused) as raised:
        imap(GREETING, b"* BYE later\r\n")
    assert not raised.value.is_denial


# --- POP3 -------------------------------------------------------------------------------------------


def pop3(*replies: bytes, mode: SendIdentity = AUTO) -> Driven:
    upstream = Pop3Upstream(configs.server(Protocol.POP3, proxy_pop3_xclient=mode))
    return drive(upstream.log_in(client(), login(Protocol.POP3)), *replies)


def test_pop3_xclient_is_sent_before_the_login() -> None:
    driven = pop3(b"+OK [XCLIENT] hi\r\n", b"+OK\r\n", b"+OK\r\n", b"+OK in\r\n")
    assert driven.sent == pop3_xclient(client()) + b"USER alice\r\nPASS secret\r\n"
    assert driven.finished


def test_pop3_xclient_is_not_sent_with_auto_if_it_is_not_offered() -> None:
    assert pop3(b"+OK hi\r\n", b"+OK\r\n", b"+OK in\r\n").sent == b"USER alice\r\nPASS secret\r\n"


@pytest.mark.parametrize(
    ("mode", "greeting", "reply", "reason"),
    [
        (AUTO, b"+OK [XCLIENT] hi\r\n", b"-ERR no\r\n", "refused XCLIENT"),
        (REQUIRED, b"+OK hi\r\n", b"-ERR unknown\r\n", "refused XCLIENT"),
        (
            AUTO,
            b"+OK [XCLIENT] hi\r\n",
            b"+OK You are not from trusted IP - ignoring\r\n",
            "login_trusted_networks",
        ),
    ],
)
def test_refused_pop3_xclient_ends_the_login(
    mode: SendIdentity, greeting: bytes, reply: bytes, reason: str
) -> None:
    with pytest.raises(UpstreamError, match=reason):
        pop3(greeting, reply, mode=mode)


@pytest.mark.parametrize(
    ("capabilities", "is_sent"),
    [
        (b"+OK\r\nUSER\r\nXCLIENT\r\n.\r\n", True),
        (b"+OK\r\nUSER\r\n.\r\n", False),
        (b"+OK\r\nXCLIENTS\r\n.\r\n", False),
        (b"-ERR XCLIENT\r\n", False),
    ],
)
def test_after_starttls_capa_decides(capabilities: bytes, *, is_sent: bool) -> None:
    upstream = Pop3Upstream(
        configs.server(Protocol.POP3, proxy_pop3_xclient=AUTO, proxy_ssl=ProxySsl.STARTTLS)
    )
    greeting, tls = b"+OK [XCLIENT] hi\r\n", None
    driven = drive(upstream.log_in(client(), login(Protocol.POP3)), greeting, b"+OK\r\n", tls, capabilities)
    assert driven.sent.startswith(b"STLS\r\nCAPA\r\n" + (b"XCLIENT " if is_sent else b"USER "))


# --- SMTP -------------------------------------------------------------------------------------------

LISTED = b"250-mx\r\n250-XCLIENT NAME ADDR LOGIN\r\n250 SIZE\r\n"
NOT_LISTED = b"250-mx\r\n250 SIZE\r\n"


def smtp(*replies: bytes, mode: XclientMode = XclientMode.AUTO, **directives: object) -> Driven:
    upstream = SmtpUpstream(configs.server(Protocol.SMTP, server_name="mx", xclient_mode=mode, **directives))
    return drive(upstream.log_in(client(), login(Protocol.SMTP)), *replies)


def test_listed_attributes_are_sent_between_two_ehlo() -> None:
    driven = smtp(b"220 hi\r\n", LISTED, b"220 hi\r\n", NOT_LISTED)
    assert driven.sent == (b"EHLO mx\r\nXCLIENT ADDR=192.0.2.1 NAME=host.example LOGIN=alice\r\nEHLO me\r\n")
    assert driven.result == b"235 2.0.0 OK\r\n"


def test_login_is_not_in_xclient_if_auth_follows() -> None:
    driven = smtp(b"220 hi\r\n", LISTED, b"220 hi\r\n", NOT_LISTED, b"235 in\r\n", proxy_smtp_auth=True)
    assert b"LOGIN=" not in driven.sent
    assert b"AUTH PLAIN" in driven.sent
    assert driven.finished


def test_xclient_is_not_sent_with_auto_if_it_is_not_listed() -> None:
    driven = smtp(b"220 hi\r\n", NOT_LISTED, b"235 in\r\n", proxy_smtp_auth=True)
    assert b"XCLIENT" not in driven.sent
    assert driven.finished


def test_login_ends_without_xclient_with_required() -> None:
    with pytest.raises(UpstreamError, match="xclientMode requires") as raised:
        smtp(b"220 hi\r\n", NOT_LISTED, mode=XclientMode.REQUIRED)
    assert raised.value.stage is UpstreamStage.XCLIENT


@pytest.mark.parametrize("reply", [b"550 5.7.0 not authorized\r\n", b"501 5.5.4 no\r\n", b"250 ok\r\n"])
def test_refused_smtp_xclient_ends_the_login(reply: bytes) -> None:
    with pytest.raises(UpstreamRefused) as raised:
        smtp(b"220 hi\r\n", LISTED, reply)
    assert raised.value.stage is UpstreamStage.XCLIENT


def test_guard_looks_at_the_ehlo_after_xclient() -> None:
    with pytest.raises(UpstreamGuardError):
        smtp(b"220 hi\r\n", LISTED, b"220 hi\r\n", LISTED)
