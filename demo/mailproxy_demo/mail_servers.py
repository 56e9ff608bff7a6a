# SPDX-License-Identifier: Apache-2.0
"""IMAP, POP3 and SMTP servers on loopback: Twisted's, with one mailbox.

What is added here is what Twisted lacks: XCLIENT for SMTP, partial FETCH and SEARCH in headers for IMAP.
``install_reactor`` has to be called before this module is imported.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import IO, Any, Self, cast

from twisted.cred.checkers import InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.portal import IRealm, Portal
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import ServerFactory
from twisted.mail import imap4, pop3, smtp
from twisted.mail.interfaces import IAccountIMAP, IMailboxPOP3, IMessageDelivery, IMessageSMTP
from zope.interface import implementer

from mailproxy_demo.auth_http_service import Account, AuthHttpService
from mailproxy_demo.memory_mailbox import (
    MAX_BYTES,
    ImapAccount,
    Mailbox,
    Message,
    MessagePart,
    Pop3Mailbox,
)


def _find_section(message: MessagePart, numbers: Iterable[int]) -> MessagePart | None:
    """Return the part of a message that a FETCH names; part 0 of one without parts is the message itself."""
    for number in numbers:
        if message.isMultipart():
            try:
                message = message.getSubPart(number)
            except IndexError:
                return None
        elif number:
            return None
    return message


def _search_field(name: bytes) -> Callable[[ImapServer, list[bytes], int, Message], bool]:
    return lambda server, query, id, msg: server.search_HEADER([name, query.pop(0)], id, msg)


class ImapServer(imap4.IMAP4Server):
    """IMAP4rev1."""

    IDENT = b"MailProxy demo ready"

    def spew_body(self, part: Any, id: int, msg: Message, _w: Any = None, _f: Any = None) -> Any:
        r"""Send a section of a message, and set its flag ``\Seen``.

        Twisted does not set the flag, sends the whole section when the client asks for ``<first.count>``, and
        closes the connection when there is no such part.
        """
        if not part.peek:
            msg.flags.add("\\Seen")
        section = _find_section(msg, part.part)
        if section is None:
            return _w(part.getBytes() + b" NIL")
        if part.partialBegin is None or part.header or part.mime:
            return super().spew_body(part, id, msg, _w, _f)
        data = section.body if part.text or part.part else section.data
        chosen = data[part.partialBegin : part.partialBegin + part.partialLength]
        name = part.getBytes().rpartition(b"<")[0]
        return _w(b"%b<%d> {%d}\r\n%b" % (name, part.partialBegin, len(chosen), chosen))

    def sendNegativeResponse(self, tag: bytes | None = None, message: bytes | str = b"") -> None:
        """Send NO; Twisted calls it with str for a folder that does not exist, and then fails."""
        super().sendNegativeResponse(tag, message.encode() if isinstance(message, str) else message)

    def do_APPEND(
        self, tag: bytes, mailbox: bytes, flags: list[bytes] | None, date: bytes | None, message: IO[bytes]
    ) -> None:
        """Add a message; Twisted fails when the client sends no flags."""
        super().do_APPEND(tag, mailbox, flags or [], date, message)

    auth_APPEND: Any = (do_APPEND, *imap4.IMAP4Server.auth_APPEND[1:])
    select_APPEND = auth_APPEND

    def search_HEADER(self, query: list[bytes], id: int, msg: Message) -> bool:
        """Compare text with a header field; Twisted's own searches compare str with bytes."""
        name, text = query.pop(0), query.pop(0).decode("ascii", "replace")
        return any(text.lower() in value.lower() for value in msg.getHeaders(False, name).values())

    search_BCC = _search_field(b"bcc")
    search_CC = _search_field(b"cc")
    search_FROM = _search_field(b"from")
    search_SUBJECT = _search_field(b"subject")
    search_TO = _search_field(b"to")


class Pop3Server(pop3.POP3):
    """POP3."""

    def listCapabilities(self) -> list[bytes]:
        """Return what Twisted implements, by the names of RFC 2449."""
        return [b"TOP", b"USER", b"UIDL", b"PIPELINING"]

    def transformChunk(self, chunk: bytes) -> bytes:
        """End lines by CRLF, and put a second dot before a leading one."""
        return re.sub(rb"(?m)^\.", b"..", chunk).replace(b"\n", b"\r\n")


class SmtpServer(smtp.ESMTP):
    """SMTP with XCLIENT (Postfix's): a client that the proxy has authenticated sends without AUTH.

    Args:
        delivery: Accepts the messages of such a client.
    """

    noisy = False

    def __init__(self, delivery: Delivery) -> None:
        super().__init__({b"PLAIN": imap4.PLAINCredentials, b"LOGIN": imap4.LOGINCredentials})
        self.host = b"demo.invalid"
        self._delivery = delivery
        self._accepts_xclient = True

    def extensions(self) -> dict[bytes, list[bytes] | None]:
        """Return what EHLO lists."""
        found: dict[bytes, list[bytes] | None] = super().extensions()
        found |= {b"8BITMIME": None, b"PIPELINING": None, b"SIZE": [b"%d" % MAX_BYTES]}
        if self._accepts_xclient:
            found[b"XCLIENT"] = [b"ADDR", b"NAME", b"LOGIN", b"PROTO", b"HELO", b"PORT"]
        return found

    def ext_XCLIENT(self, rest: bytes) -> None:
        """Accept the login name that the proxy passes on, once: the client must not send its own."""
        if not self._accepts_xclient:
            self.sendCode(550, b"5.7.0 Not authorized")
            return
        self._accepts_xclient = False
        attributes = dict(word.partition(b"=")[::2] for word in rest.split())
        if attributes.get(b"LOGIN", b"[UNAVAILABLE]") != b"[UNAVAILABLE]":
            self.delivery = self._delivery
        self.sendCode(220, self.greeting())


@implementer(IMessageSMTP)
class ReceivedMessage:
    """A message while SMTP receives it."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._lines: list[bytes] = []
        self._size = 0

    def lineReceived(self, line: bytes) -> None:
        """Add a line.

        Raises:
            smtp.SMTPServerError: The message has become too large.
        """
        self._size += len(line) + 2
        if self._size > MAX_BYTES:
            raise smtp.SMTPServerError(552, b"Message too large")
        self._lines.append(line)

    def eomReceived(self) -> Deferred[int]:
        """Deliver it."""
        return succeed(self._mailbox.deliver(b"\r\n".join(self._lines)))

    def connectionLost(self) -> None:
        """Discard it."""
        self._lines.clear()


@implementer(IMessageDelivery)
class Delivery:
    """Accepts every sender and recipient; each recipient's copy goes to the one mailbox."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def validateFrom(self, helo: object, origin: smtp.Address) -> smtp.Address:
        """Accept a sender."""
        return origin

    def validateTo(self, user: smtp.User) -> Callable[[], ReceivedMessage]:
        """Accept a recipient."""
        return lambda: ReceivedMessage(self._mailbox)

    def receivedHeader(self, helo: object, origin: smtp.Address, recipients: list[smtp.User]) -> bytes:
        """Return the header fields that delivery adds: the envelope."""
        return b"Return-Path: <%b>\r\nDelivered-To: %b" % (bytes(origin), bytes(recipients[0]))


@implementer(IRealm)
class Realm:
    """Gives each protocol its view of the mailbox after a login."""

    def __init__(self, mailbox: Mailbox, delivery: Delivery) -> None:
        self._mailbox = mailbox
        self._delivery = delivery

    def requestAvatar(
        self, avatarId: object, mind: object, *interfaces: object
    ) -> tuple[object, object, Callable[[], None]]:
        """Return the interface, the object that implements it, and what to call at logout."""
        if IAccountIMAP in interfaces:
            account = ImapAccount(self._mailbox)
            return IAccountIMAP, account, account.inbox.close
        if IMailboxPOP3 in interfaces:
            return IMailboxPOP3, Pop3Mailbox(self._mailbox), lambda: None
        return IMessageDelivery, self._delivery, lambda: None


class PortalFactory(ServerFactory):
    """Makes a protocol for each connection, with the portal that authenticates its client."""

    noisy = False

    def __init__(self, protocol: Callable[[], Any], portal: Portal) -> None:
        self.protocol = protocol
        self._portal = portal

    def buildProtocol(self, addr: Any) -> Any:
        """Make a protocol."""
        made: Any = super().buildProtocol(addr)
        made.portal = self._portal
        return made


class MailServers:
    """The three servers on 127.0.0.1, and an authentication service that names their ports.

    An asynchronous context manager: the servers run until it ends.

    Args:
        reactor: What ``install_reactor`` returned.
        auth_port: The port of the authentication service; 0 for a free one, ``None`` for no such service.
        wanted: The port of a server, by protocol; without it, or with 0, a free one.

    Attributes:
        account: The one user.
        ports: The port of each server, by protocol.
    """

    def __init__(
        self,
        reactor: AsyncioSelectorReactor,
        auth_port: int | None = 0,
        wanted: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.account = Account()
        self.ports: dict[str, int] = {}
        self._reactor = reactor
        self._wanted = wanted
        self._auth = None if auth_port is None else AuthHttpService(self.account, self.ports, auth_port)

    @property
    def auth_url(self) -> str:
        """The URL of the authentication service, a value for ``authHttp``; empty without one."""
        return "" if self._auth is None else f"http://127.0.0.1:{self._auth.port}/auth"

    async def __aenter__(self) -> Self:
        if self._auth is not None:
            await self._auth.__aenter__()
        mailbox = Mailbox()
        delivery = Delivery(mailbox)
        checker = InMemoryUsernamePasswordDatabaseDontUse()
        checker.addUser(self.account.user.encode(), self.account.password.encode())
        portal = Portal(cast(Any, Realm(mailbox, delivery)), [cast(Any, checker)])
        protocols: dict[str, Callable[[], Any]] = {
            "imap": lambda: ImapServer({b"PLAIN": imap4.PLAINCredentials}),
            "pop3": Pop3Server,
            "smtp": lambda: SmtpServer(delivery),
        }
        for name, protocol in protocols.items():
            factory = PortalFactory(protocol, portal)
            port = self._reactor.listenTCP(self._wanted.get(name, 0), factory, interface="127.0.0.1")
            # Each connection inherits it: the end of a response is not delayed by Nagle's algorithm.
            port.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.ports[name] = port.getHost().port
        return self

    async def __aexit__(self, *_: object) -> None:
        self._reactor.disconnectAll()
        if self._auth is not None:
            await self._auth.__aexit__()
