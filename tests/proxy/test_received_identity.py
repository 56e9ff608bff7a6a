# SPDX-License-Identifier: Apache-2.0
"""What trusted webmail and other proxies write about the original client: parsers, limits, chains."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from copy import deepcopy

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailproxy.enums import Method
from mailproxy.errors import ProxyLoopError
from mailproxy.protocols.client_identity import (
    MAX_ID_LINE,
    MAX_LINE,
    MAX_POP3_LINE,
    forwarded_facts,
    imap_id,
    pop3_xclient,
    smtp_xclient,
)
from mailproxy.protocols.imap_id import ID_LINE, MAX_PAIRS, IdParser
from mailproxy.protocols.proxy_protocol import outbound_header
from mailproxy.protocols.received_identity import (
    MAX_SESSION_ID,
    SMTP_ATTRIBUTES,
    InvalidIdentity,
    ProxyLoop,
    apply_identity,
    id_facts,
    pop3_facts,
    smtp_facts,
)
from mailproxy.protocols.types import (
    PROXY_TTL,
    TEMPUNAVAIL,
    UNAVAILABLE,
    AuthAllowed,
    Client,
    ReceivedIdentity,
    TlsInfo,
    UpstreamLogin,
)
from mailproxy_config.model import Protocol, SendProxyProtocol
from support import configs

OFFERED = frozenset(SMTP_ATTRIBUTES.encode().split())


def webmail(**changes: object) -> Client:
    """Return the client that names another one."""
    facts = {"local_address": "10.0.0.1", "local_port": 143, "session_id": "own-1"}
    return Client("10.0.0.5", 40000, **(facts | changes))  # type: ignore[arg-type]


def login(helo: bytes = b"client.example") -> UpstreamLogin:
    return UpstreamLogin(AuthAllowed("10.0.0.9", 25, b"u"), Method.PLAIN, helo=helo, esmtp=True)


def read_id(client: Client, command: bytes) -> None:
    """Apply an ID command of one line."""
    line = command.removesuffix(b"\r\n")
    found = ID_LINE.match(line)
    assert found is not None
    parser = IdParser()
    parser.feed(line[found.end() :])
    apply_identity(client, *id_facts(parser.pairs()))


def read_pop3(client: Client, command: bytes) -> None:
    """Apply XCLIENT of POP3."""
    apply_identity(client, *pop3_facts(command.removesuffix(b"\r\n").partition(b" ")[2]))


def read_smtp(client: Client, command: bytes) -> None:
    """Apply XCLIENT of SMTP."""
    apply_identity(client, smtp_facts(command.removesuffix(b"\r\n").partition(b" ")[2]))


def send_id(client: Client) -> bytes:
    return imap_id(client, b"x1")


COMMANDS: list[tuple[Callable[[Client], bytes], Callable[[Client, bytes], None]]] = [
    (send_id, read_id),
    (pop3_xclient, read_pop3),
]


def named(arguments: bytes, client: Client | None = None) -> Client:
    """Return a client after XCLIENT of POP3 with these arguments."""
    client = client or webmail()
    read_pop3(client, b"XCLIENT " + arguments)
    return client


# --- what one proxy sends, the next one reads ---------------------------------------------------------

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
PORTS = st.integers(1, 65535)


@pytest.mark.generated
@pytest.mark.parametrize(("write", "read"), COMMANDS, ids=["imap", "pop3"])
@given(data=st.data())
def test_identity_survives_the_way_to_the_next_proxy(
    write: Callable[[Client], bytes], read: Callable[[Client, bytes], None], data: st.DataObject
) -> None:
    tls = TlsInfo("TLSv1.3", "x", server_name=b"mail.example.org") if data.draw(st.booleans()) else None
    first = Client(
        data.draw(ADDRESSES),
        data.draw(PORTS),
        data.draw(ADDRESSES),
        data.draw(PORTS),
        tls=tls,
        session_id=data.draw(st.from_regex(r"\A[A-Za-z0-9-]{1,64}\Z")),
    )
    second = webmail(tls=TlsInfo("TLSv1.3", "x", server_name=b"inner.example"))
    read(second, write(first))
    assert (second.port, second.connected[1]) == (first.port, first.local_port)
    assert second.proxy_ttl == first.proxy_ttl - 1
    assert second.upstream_session_id == first.session_id
    third = webmail()
    read(third, write(second))
    assert (third.address, third.port, third.connected) == (second.address, second.port, second.connected)
    assert second.received is not None
    assert third.received is not None
    assert third.received.transport == second.received.transport == (b"insecure" if tls is None else b"TLS")
    assert third.received.server_name == second.received.server_name
    assert third.upstream_session_id == first.session_id


@pytest.mark.generated
@given(
    address=ADDRESSES,
    destination=ADDRESSES,
    helo=st.binary(min_size=1, max_size=80).map(lambda data: re.sub(rb"[\0- \x7f]", b"x", data)),
)
def test_smtp_identity_survives_the_way_to_the_next_proxy(
    address: str, destination: str, helo: bytes
) -> None:
    first = Client(address, 4711, destination, 587, host=b"host.example")
    second = webmail()
    for command in smtp_xclient(first, login(helo), OFFERED, has_login=False):
        read_smtp(second, command)
    assert second.received is not None
    assert (second.port, second.connected[1], second.host) == (4711, 587, b"host.example")
    assert (second.received.helo, second.received.is_esmtp) == (helo, True)
    third = webmail()
    for command in smtp_xclient(second, login(helo), OFFERED, has_login=False):
        read_smtp(third, command)
    assert (third.address, third.connected) == (second.address, second.connected)


@pytest.mark.parametrize(("write", "read"), COMMANDS, ids=["imap", "pop3"])
def test_chain_of_eight_proxies_is_a_loop(
    write: Callable[[Client], bytes], read: Callable[[Client, bytes], None]
) -> None:
    client = Client("192.0.2.7", 51512, "198.51.100.1", 993, session_id="first")
    for passed in range(2, PROXY_TTL + 1):
        command = write(client)
        client = webmail(session_id=f"proxy-{passed}")
        read(client, command)
        assert (client.address, client.port, client.upstream_session_id) == ("192.0.2.7", 51512, "first")
        assert client.proxy_ttl == PROXY_TTL + 1 - passed
    command = write(client)
    assert PROXY_TTL < 8
    with pytest.raises(ProxyLoop):
        read(webmail(), command)


def test_client_at_the_end_of_its_ttl_is_not_sent_on() -> None:
    client = named(b"TTL=2")
    assert b"TTL=1 " in pop3_xclient(client)
    client.proxy_ttl = 0
    with pytest.raises(ProxyLoopError):
        pop3_xclient(client)


# --- single facts -------------------------------------------------------------------------------------


def test_session_id_of_64_bytes_is_sent_on_and_one_of_65_is_not() -> None:
    longest = b"s" * MAX_SESSION_ID
    assert MAX_SESSION_ID == 64
    client = named(b"SESSION=" + longest)
    assert client.session_id == "own-1"
    assert b"SESSION=" + longest + b" " in pop3_xclient(client)
    longer = named(b"SESSION=" + longest + b"s")
    assert b"SESSION=own-1 " in pop3_xclient(longer)
    assert b"ssss" not in pop3_xclient(longer) + send_id(longer)


@pytest.mark.parametrize("session", [b"a.b", b"a=b", b'a"b', b"a\\b", b"{1}"])
def test_session_id_with_other_characters_is_not_sent_on(session: bytes) -> None:
    client = webmail()
    apply_identity(client, {b"SESSION": session})
    assert client.upstream_session_id == "own-1"


def test_unique_id_of_a_proxy_header_is_that_of_the_first_proxy() -> None:
    config = configs.server(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V2, proxy_protocol_unique_id=True)
    assert b"k3Xp0vY" in outbound_header(config, named(b"ADDR=192.0.2.7 PORT=1 SESSION=k3Xp0vY"))


def test_address_without_a_port_is_sent_on_without_a_port() -> None:
    client = named(b"ADDR=192.0.2.7")
    assert client.port == 0
    assert pop3_xclient(client).startswith(b"XCLIENT ADDR=192.0.2.7 DESTADDR=10.0.0.1 DESTPORT=143 SESSION=")
    assert b'"x-originating-ip" "192.0.2.7" "x-connected-ip"' in send_id(client)
    assert smtp_xclient(client, login(), OFFERED, has_login=False)[0].startswith(
        b"XCLIENT ADDR=192.0.2.7 DESTADDR=10.0.0.1 "
    )


def test_client_named_through_a_unix_socket_has_no_destination() -> None:
    client = Client("unix:", 0, "unix:", session_id="own-1")
    assert b"ADDR" not in pop3_xclient(client)
    named(b"ADDR=192.0.2.7 PORT=1", client)
    assert pop3_xclient(client).startswith(b"XCLIENT ADDR=192.0.2.7 PORT=1 SESSION=")
    assert b"x-connected-ip" not in send_id(client)
    assert b"DESTADDR" not in b"".join(smtp_xclient(client, login(), OFFERED, has_login=False))


def test_transport_is_the_one_of_the_original_client() -> None:
    tls = TlsInfo("TLSv1.3", "x", server_name=b"inner.example")
    client = named(b"CLIENT-TRANSPORT=insecure DESTNAME=mail.example.org", webmail(tls=tls))
    assert b"CLIENT-TRANSPORT=insecure DESTNAME=mail.example.org" in pop3_xclient(client)
    assert b"inner.example" not in pop3_xclient(named(b"ADDR=192.0.2.7", webmail(tls=tls)))
    assert b"CLIENT-TRANSPORT=TLS" in pop3_xclient(named(b"CLIENT-TRANSPORT=x", webmail(tls=tls)))


def test_forwarded_facts_are_sent_on_and_own_ones_win() -> None:
    config = configs.server(Protocol.POP3, proxy_forward=(("site", "own"),))
    encoded = b64encode(b"Site=theirs\tfoo=bar\tbad name=x\tline=a\x01nb\tfoo=twice\tempty=")
    client = named(b"ADDR=192.0.2.7 FORWARD=" + encoded)
    assert client.received is not None
    assert client.received.forwarded == ((b"Site", b"theirs"), (b"foo", b"bar"), (b"empty", b""))
    sent = imap_id(client, b"x1", forwarded_facts(config))
    assert b'"x-forward-site" "own"' in sent
    assert b'"x-forward-foo" "bar"' in sent
    assert b"theirs" not in sent
    assert b64encode(b"site=own\tfoo=bar\tempty=") in pop3_xclient(client, forwarded_facts(config))
    assert b64encode(b"Site=theirs\tfoo=bar\tempty=") in pop3_xclient(client)


def test_line_of_upstream_command_stays_within_its_limit() -> None:
    facts = tuple((b"name-%02d" % number, b"v" * 1024) for number in range(MAX_PAIRS))
    client = webmail(received=ReceivedIdentity("10.0.0.5", forwarded=facts))
    assert len(send_id(client)) <= MAX_ID_LINE
    assert len(pop3_xclient(client)) <= MAX_POP3_LINE
    offered = OFFERED | {b"FORWARD"}
    assert all(len(line) <= MAX_LINE for line in smtp_xclient(client, login(), offered, has_login=False))
    assert send_id(client).count(b'" "') <= 2 * MAX_PAIRS


@pytest.mark.parametrize(
    ("value", "host"),
    [(b"host.example", b"host.example"), (b"[unavailable]", UNAVAILABLE), (b"[TEMPUNAVAIL]", TEMPUNAVAIL)],
)
def test_host_name_of_smtp_xclient(value: bytes, host: bytes) -> None:
    client = webmail()
    read_smtp(client, b"XCLIENT NAME=" + value)
    assert client.host == host


def test_unavailable_attributes_of_smtp_xclient_change_nothing() -> None:
    client = webmail()
    read_smtp(client, b"XCLIENT ADDR=[UNAVAILABLE] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] PROTO=[unavailable]")
    assert (client.address, client.port) == ("10.0.0.5", 40000)
    assert client.received is not None
    assert (client.received.helo, client.received.is_esmtp) == (None, None)


def test_login_is_no_attribute_of_smtp_xclient() -> None:
    assert SMTP_ATTRIBUTES == "ADDR PORT PROTO HELO DESTADDR DESTPORT NAME"
    for arguments in (b"LOGIN=ceo", b"login=ceo", b"ADDR=192.0.2.7 LOGIN=ceo", b"NAME=x LOGIN=[UNAVAILABLE]"):
        with pytest.raises(InvalidIdentity):
            smtp_facts(arguments)


# --- bad input ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        b"",
        b" ",
        b"ADDR",
        b"ADDR=",
        b"=x",
        b"ADDR=192.0.2.07",
        b"ADDR=192.0.2.7 ADDR=192.0.2.7",
        b"ADDR=192.0.2.7/32",
        b"ADDR=fe80::1%eth0",
        b"ADDR=localhost",
        b"ADDR=unix:",
        b"ADDR=[2001:db8::7]",
        b"PORT=65536",
        b"PORT=-1",
        b"PORT=1_0",
        b"PORT=\xd9\xa1",
        b"PORT=0x10",
        b"TTL=256",
        b"TTL=six",
        b"DESTADDR=x",
        b"DESTPORT=100000",
        b"FORWARD=a",
        b"ADDR=192.0.2.7\0",
        b"ADDR=192.0.2.7\rPORT=1",
        b"ADDR=192.0.2.7\tPORT=1",
    ],
)
def test_malformed_xclient_changes_nothing(arguments: bytes) -> None:
    client = webmail()
    before = deepcopy(client)
    with pytest.raises(InvalidIdentity):
        read_pop3(client, b"XCLIENT " + arguments)
    assert client == before


@pytest.mark.parametrize("ttl", [b"0", b"1", b"001"])
def test_used_up_ttl_changes_nothing(ttl: bytes) -> None:
    client = webmail()
    before = deepcopy(client)
    with pytest.raises(ProxyLoop):
        read_pop3(client, b"XCLIENT ADDR=192.0.2.7 TTL=" + ttl)
    assert client == before


WORDS = st.sampled_from(
    [
        *(b"ADDR= PORT= TTL= DESTADDR= DESTPORT= SESSION= DESTNAME= FORWARD= NAME= HELO= PROTO=".split()),
        *(b"192.0.2.7", b"IPV6:", b"2001:db8::7", b"+0D+0A", b"+00", b" ", b"\r", b"\n", b"\0", b"\t", b'"'),
        *(b"CLIENT-TRANSPORT=TLS", b"x-originating-ip", b"x-forward-a", b"ESMTP", b"9", b"1", b"\xff", b"+"),
    ]
)
HOSTILE = st.one_of(st.binary(max_size=200), st.lists(WORDS, max_size=14).map(b"".join))


@pytest.mark.generated
@pytest.mark.parametrize("read", [read_pop3, read_smtp], ids=["pop3", "smtp"])
@given(arguments=HOSTILE)
def test_no_control_character_crosses(read: Callable[[Client, bytes], None], arguments: bytes) -> None:
    client = webmail()
    before = deepcopy(client)
    try:
        read(client, b"XCLIENT " + arguments)
    except (InvalidIdentity, ProxyLoop):
        assert client == before
    check_commands(client)


@pytest.mark.generated
@given(
    pairs=st.lists(
        st.tuples(
            st.sampled_from(
                [
                    *(b"x-originating-ip", b"X-Originating-Port", b"x-connected-ip", b"x-connected-port"),
                    *(b"x-session-id", b"x-proxy-ttl", b"x-client-transport", b"x-connected-name"),
                    *(b"x-forward-a", b"x-forward-\r\n", b"x-forward-", b"name"),
                ]
            ),
            st.one_of(st.none(), HOSTILE, st.sampled_from([b"192.0.2.7", b"5", b"TLS"])),
        ),
        max_size=12,
    )
)
def test_no_control_character_crosses_by_id(pairs: list[tuple[bytes, bytes | None]]) -> None:
    client = webmail()
    before = deepcopy(client)
    try:
        apply_identity(client, *id_facts(pairs))
    except (InvalidIdentity, ProxyLoop):
        assert client == before
    check_commands(client)


def check_commands(client: Client) -> None:
    """Check that what is sent on is one line each, in printable ASCII."""
    helo = client.received.helo if client.received is not None and client.received.helo else b"x"
    for command in (
        send_id(client),
        pop3_xclient(client),
        *smtp_xclient(client, login(helo), OFFERED, has_login=False),
        outbound_header(configs.server(Protocol.IMAP, proxy_protocol=SendProxyProtocol.V1), client),
    ):
        assert re.fullmatch(rb"[ -~]+\r\n", command), command
    assert re.fullmatch(rb"[!-~]+", client.host)
    assert re.fullmatch(rb"[!-~\x80-\xff]+", helo)
