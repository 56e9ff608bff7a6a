# SPDX-License-Identifier: Apache-2.0
"""The mark of a login that must not be tried elsewhere, set before anything about its client is sent."""

from __future__ import annotations

from base64 import b64encode
from typing import Any, Final

import pytest

from mailproxy.enums import Method, ProtocolErrorKind, UpstreamStage, UpstreamTlsFailure
from mailproxy.errors import (
    PeerClosed,
    UpstreamError,
    UpstreamGuardError,
    UpstreamRefused,
    UpstreamTlsError,
)
from mailproxy.protocols.registry import PROTOCOLS
from mailproxy.protocols.sansio import Receive, Send, UpgradeToTls
from mailproxy.protocols.types import (
    AuthAllowed,
    Client,
    Envelope,
    Secret,
    UpstreamLogin,
    UpstreamLoginResult,
)
from mailproxy.session.upstream_candidates import failure_of
from mailproxy_config.model import NextUpstream, Protocol, ProxySsl, SendIdentity, XclientMode
from support.configs import server

CLIENT: Final = Client("192.0.2.7", 5000, session_id="s1")
SECRETS: Final = (b"alice", b"wonder", b64encode(b"\0alice\0wonder"), b"192.0.2.7", b"<a@x>")
"""What must not be sent before the mark."""
AUTO: Final = SendIdentity.AUTO
IMAP_OK: Final = b"* OK [CAPABILITY IMAP4rev1 ID STARTTLS] hi\r\n"
CAPABILITIES: Final = b"* CAPABILITY IMAP4rev1 ID\r\nx2 OK\r\n"
EHLO_TLS: Final = b"250-mx\r\n250 STARTTLS\r\n"
EHLO_XCLIENT: Final = b"250-mx\r\n250 XCLIENT NAME ADDR PORT LOGIN\r\n"
EHLO: Final = b"250 mx\r\n"
ENVELOPE: Final = Envelope(b"me", b"MAIL FROM:<a@x>", b"RCPT TO:<b@x>")
STARTTLS: Final = ProxySsl.STARTTLS


def login(**values: Any) -> UpstreamLogin:
    grant = AuthAllowed("192.0.2.1", 143, b"alice", Secret(b"wonder"))
    return UpstreamLogin(grant, Method.PLAIN, tag=b"a", **values)


CASES: Final[dict[str, tuple[Protocol, dict[str, Any], UpstreamLogin, tuple[bytes, ...]]]] = {
    "imap": (Protocol.IMAP, {}, login(), (IMAP_OK, b"+\r\n", b"+\r\n", b"a OK\r\n")),
    "imap, literal+": (
        Protocol.IMAP,
        {},
        login(),
        (b"* OK [CAPABILITY IMAP4rev1 LITERAL+] hi\r\n", b"a OK\r\n"),
    ),
    "imap, id": (
        Protocol.IMAP,
        {"proxy_id": AUTO},
        login(),
        (IMAP_OK, b"x3 OK\r\n", b"+\r\n", b"+\r\n", b"a OK\r\n"),
    ),
    "imap, starttls, id": (
        Protocol.IMAP,
        {"proxy_id": AUTO, "proxy_ssl": STARTTLS},
        login(),
        (IMAP_OK, b"x1 OK\r\n", CAPABILITIES, b"x3 OK\r\n", b"+\r\n", b"+\r\n", b"a OK\r\n"),
    ),
    "pop3": (Protocol.POP3, {}, login(), (b"+OK hi\r\n", b"+OK\r\n", b"+OK\r\n")),
    "pop3, xclient": (
        Protocol.POP3,
        {"proxy_pop3_xclient": AUTO},
        login(),
        (b"+OK [XCLIENT] hi\r\n", b"+OK\r\n", b"+OK\r\n", b"+OK\r\n"),
    ),
    "pop3, stls, xclient": (
        Protocol.POP3,
        {"proxy_pop3_xclient": AUTO, "proxy_ssl": STARTTLS},
        login(),
        (b"+OK\r\n", b"+OK\r\n", b"+OK\r\nXCLIENT\r\n.\r\n", b"+OK\r\n", b"+OK\r\n", b"+OK\r\n"),
    ),
    "smtp, xclient": (
        Protocol.SMTP,
        {},
        login(helo=b"me", esmtp=True),
        (b"220 mx\r\n", EHLO, b"220 mx\r\n", EHLO),
    ),
    "smtp, auth": (
        Protocol.SMTP,
        {"proxy_smtp_auth": True, "xclient": False},
        login(helo=b"me", esmtp=True),
        (b"220 mx\r\n", EHLO, b"235 ok\r\n"),
    ),
    "smtp, xclient and auth": (
        Protocol.SMTP,
        {"proxy_smtp_auth": True},
        login(helo=b"me", esmtp=True),
        (b"220 mx\r\n", EHLO, b"220 mx\r\n", EHLO, b"235 ok\r\n"),
    ),
    "smtp, negotiated xclient": (
        Protocol.SMTP,
        {"xclient_mode": XclientMode.AUTO},
        login(helo=b"me", esmtp=True),
        (b"220 mx\r\n", EHLO_XCLIENT, b"220 mx\r\n", EHLO),
    ),
    "smtp, starttls, auth": (
        Protocol.SMTP,
        {"proxy_smtp_auth": True, "xclient": False, "proxy_ssl": STARTTLS},
        login(helo=b"me", esmtp=True),
        (b"220 mx\r\n", EHLO_TLS, b"220 go\r\n", EHLO, b"235 ok\r\n"),
    ),
    "smtp, envelope": (
        Protocol.SMTP,
        {"xclient": False},
        login(helo=b"me", envelope=ENVELOPE),
        (b"220 mx\r\n", EHLO, EHLO, b"250 ok\r\n"),
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def play(name: str, *, dies_before: int | None = None) -> tuple[list[tuple[bytes, bool]], object]:
    """Log in; return what was sent, each with the mark at that time, and the result or the error.

    Args:
        name: The case.
        dies_before: The upstream closes the connection in place of this reply.
    """
    protocol, directives, login_template, replies = CASES[name]
    one = UpstreamLogin(**{field: getattr(login_template, field) for field in UpstreamLogin.__slots__})
    one.is_committed = False
    generator = PROTOCOLS[protocol].upstream(server(protocol, **directives)).log_in(CLIENT, one)
    sent: list[tuple[bytes, bool]] = []
    waiting = list(replies if dies_before is None else replies[:dies_before])
    effect = next(generator)
    try:
        while True:
            match effect:
                case Send(data):
                    sent.append((data, one.is_committed))
                    effect = generator.send(None)
                case Receive() if not waiting:
                    effect = generator.throw(PeerClosed())
                case Receive():
                    effect = generator.send(waiting.pop(0))
                case UpgradeToTls():
                    effect = generator.send(None)
    except StopIteration as end:
        return sent, end.value
    except UpstreamError as error:
        return sent, (error, failure_of(error, one, protocol))


@every_case
def test_login_is_marked_before_anything_about_its_client_is_sent(name: str) -> None:
    sent, result = play(name)
    assert isinstance(result, UpstreamLoginResult)
    revealing = [is_marked for data, is_marked in sent if any(secret in data for secret in SECRETS)]
    assert revealing
    assert all(revealing)


@every_case
def test_connection_that_ends_after_the_mark_is_not_tried_elsewhere(name: str) -> None:
    """For each reply that does not come: if the client was revealed, there is no other try."""
    for position in range(len(CASES[name][3])):
        sent, result = play(name, dies_before=position)
        assert isinstance(result, tuple)
        error, failure = result
        revealed = any(secret in data for data, _ in sent for secret in SECRETS)
        is_marked = bool(sent) and sent[-1][1]
        assert not revealed or is_marked, (name, position, error)
        assert failure is None or not is_marked, (name, position, error)


def test_mark_comes_as_late_as_possible() -> None:
    """An end before it can be tried elsewhere, by protocol: the greeting, STARTTLS, EHLO."""
    assert play("imap", dies_before=0)[1][1] is NextUpstream.GREETING  # type: ignore[index]
    assert play("pop3, stls, xclient", dies_before=1)[1][1] is NextUpstream.STARTTLS  # type: ignore[index]
    assert play("smtp, auth", dies_before=1)[1][1] is NextUpstream.HELLO  # type: ignore[index]
    assert play("smtp, starttls, auth", dies_before=3)[1][1] is NextUpstream.HELLO  # type: ignore[index]


# --- kinds of failures ------------------------------------------------------------------------------


def failure(error: Exception, *, protocol: Protocol = Protocol.IMAP, committed: bool = False) -> object:
    one = login()
    one.is_committed = committed
    return failure_of(error, one, protocol)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (UpstreamError("x", stage=UpstreamStage.CONNECT), NextUpstream.CONNECT),
        (UpstreamError("x", stage=UpstreamStage.GREETING), NextUpstream.GREETING),
        (
            UpstreamError("x", stage=UpstreamStage.GREETING, kind=ProtocolErrorKind.NO_GREETING),
            NextUpstream.GREETING,
        ),
        (UpstreamError("x", stage=UpstreamStage.GREETING, kind=ProtocolErrorKind.UNEXPECTED_REPLY), None),
        (UpstreamError("x", stage=UpstreamStage.GREETING, kind=ProtocolErrorKind.REPLY_TOO_LONG), None),
        (UpstreamError("x", stage=UpstreamStage.TLS), NextUpstream.STARTTLS),
        (UpstreamRefused(b"421 later\r\n", stage=UpstreamStage.TLS), NextUpstream.STARTTLS),
        (UpstreamError("x", stage=UpstreamStage.HELLO), NextUpstream.HELLO),
        (UpstreamRefused(b"451 later\r\n", stage=UpstreamStage.HELLO), NextUpstream.HELLO),
        (UpstreamRefused(b"550 no\r\n", stage=UpstreamStage.HELLO), None),
        (UpstreamError("x", stage=UpstreamStage.ID), None),
        (UpstreamError("x", stage=UpstreamStage.XCLIENT), None),
        (UpstreamError("x", stage=UpstreamStage.LOGIN), None),
        (UpstreamError("x", stage=UpstreamStage.ENVELOPE), None),
        (UpstreamGuardError("x", stage=UpstreamStage.HELLO, reply=b"250 XCLIENT\r\n"), None),
        (RuntimeError(), None),
    ],
)
def test_kind_of_failure(error: Exception, expected: NextUpstream | None) -> None:
    assert failure(error) is expected
    assert failure(error, committed=True) is None


@pytest.mark.parametrize("reason", UpstreamTlsFailure)
def test_only_failures_of_tls_that_may_pass_are_tried_again(reason: UpstreamTlsFailure) -> None:
    passing = {UpstreamTlsFailure.PROTOCOL, UpstreamTlsFailure.REFUSED, UpstreamTlsFailure.TIMEOUT}
    assert failure(UpstreamTlsError(reason, "x")) is (NextUpstream.TLS if reason in passing else None)


@pytest.mark.parametrize(
    ("protocol", "reply", "is_temporary"),
    [
        (Protocol.IMAP, b"a NO [UNAVAILABLE] later\r\n", True),
        (Protocol.IMAP, b"* 1 EXISTS\r\na no [unavailable] later\r\n", True),
        (Protocol.IMAP, b"* NO [UNAVAILABLE] later\r\n", False),
        (Protocol.IMAP, b"a NO [AUTHENTICATIONFAILED] [UNAVAILABLE]\r\n", False),
        (Protocol.IMAP, b"b NO [UNAVAILABLE] later\r\n", False),
        (Protocol.POP3, b"-ERR [SYS/TEMP] later\r\n", True),
        (Protocol.POP3, b"-ERR [SYS/PERM] never\r\n", False),
        (Protocol.POP3, b"-ERR [IN-USE] locked\r\n", False),
        (Protocol.SMTP, b"454 4.7.0 later\r\n", True),
        (Protocol.SMTP, b"421 4.3.2 later\r\n", True),
        (Protocol.SMTP, b"535 5.7.8 no\r\n", False),
    ],
)
def test_temporary_refusal_of_credentials(protocol: Protocol, reply: bytes, is_temporary: bool) -> None:
    expected = NextUpstream.UNAVAILABLE if is_temporary else None
    error = UpstreamRefused(reply, stage=UpstreamStage.LOGIN, is_denial=True)
    assert failure(error, protocol=protocol, committed=True) is expected
    envelope = UpstreamRefused(reply, stage=UpstreamStage.ENVELOPE, is_denial=True)
    assert failure(envelope, protocol=protocol, committed=True) is None
