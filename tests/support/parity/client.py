# SPDX-License-Identifier: Apache-2.0
"""A scripted client, with TLS or without, that records how its connection ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from dataclasses import dataclass
from typing import Final

from support.parity.dialogue import Tls
from support.parity.peers import Activity

_PAUSE: Final = 0.004
_CHUNK: Final = 65536


@dataclass(frozen=True)
class Session:
    """A TLS session for resumption, and the context that it belongs to."""

    context: ssl.SSLContext
    session: ssl.SSLSession | None


class Wire:
    """One connection to a program.

    Attributes:
        heard: All bytes received so far, decrypted if there is TLS.
        ending: ``open``, ``eof``, ``notified`` (a TLS close_notify before the end) or ``reset``.
    """

    def __init__(self, sock: socket.socket, activity: Activity) -> None:
        self.sock = sock
        self.activity = activity
        self.heard = b""
        self.ending = "open"
        self._notified = False
        self._tls: ssl.SSLObject | None = None
        self._shaking = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    @property
    def is_open(self) -> bool:
        """Whether the other side has not ended the connection."""
        return self.ending == "open"

    async def say(self, data: bytes) -> None:
        """Send bytes; errors of a closed connection are ignored."""
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self._tls.write(data)
            data = self._outgoing.read()
        await self._send(data)

    async def say_in_pieces(self, pieces: tuple[bytes, ...]) -> None:
        """Send each piece separately, so that the pieces probably arrive separately."""
        for piece in pieces:
            if not self.is_open:
                return
            await self.say(piece)
            await asyncio.sleep(_PAUSE)

    async def start_tls(self, how: Tls, context: ssl.SSLContext | Session, patience: float) -> str:
        """Perform a TLS handshake; return the negotiated parameters or the error."""
        if how.ahead:
            await self._send(how.ahead)
        if not self.is_open:
            return "not begun"
        kept = context if isinstance(context, Session) else Session(context, None)
        self._tls = kept.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=how.name or None, session=kept.session
        )
        self._shaking = True
        try:
            async with asyncio.timeout(patience):
                outcome = await self._shake(self._tls, how.behind)
        except TimeoutError:
            outcome = "failed: nothing came"
        self._shaking = False
        if outcome.startswith("failed"):
            self._tls = None
        else:
            self._decrypt()
        return outcome

    async def _shake(self, tls: ssl.SSLObject, behind: bytes) -> str:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send(self._outgoing.read())
                if not self.is_open:
                    return "failed: connection ended"
                await self.activity.next(0.5)
            except ssl.SSLError as error:
                await self._send(self._outgoing.read())
                return f"failed: {error.reason}"
            else:
                if behind:
                    tls.write(behind)
                await self._send(self._outgoing.read())
                return _settled(tls)

    async def _send(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self._loop.sock_sendall(self.sock, data)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._end("reset")
            return
        if not data:
            self._end("notified" if self._notified else "eof")
        elif self._tls is None:
            self.heard += data
        else:
            self._incoming.write(data)
            if not self._shaking:
                self._decrypt()
        self.activity.stir()

    def _decrypt(self) -> None:
        assert self._tls is not None
        try:
            while data := self._tls.read(_CHUNK):
                self.heard += data
            self._say_goodbye()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._say_goodbye()
        except ssl.SSLError as error:
            self.heard += f"[{error.reason}]".encode()

    def _say_goodbye(self) -> None:
        self._notified = True
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            self.sock.send(self._outgoing.read())

    def _end(self, how: str) -> None:
        self._loop.remove_reader(self.sock)
        self.ending = how
        self.activity.stir()

    def kept(self, context: ssl.SSLContext) -> Session:
        """Return the TLS session, for another connection."""
        return Session(context, self._tls.session if self._tls is not None else None)

    def shut(self) -> None:
        """Shut down the sending direction."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Reset the connection."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()
        self.ending = "left"

    def close(self) -> None:
        """Close the connection."""
        if self.sock.fileno() >= 0:
            self._loop.remove_reader(self.sock)
            self.sock.close()


def _settled(tls: ssl.SSLObject) -> str:
    cipher = tls.cipher()
    words = [
        tls.version() or "",
        cipher[0] if cipher else "",
        tls.selected_alpn_protocol() or "",
        "resumed" if tls.session_reused else "",
    ]
    return " ".join(filter(None, words))


def context_of(how: Tls, certificates: dict[str, str]) -> ssl.SSLContext:
    """Return the TLS context of a client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if how.version:
        version = getattr(ssl.TLSVersion, how.version.replace(".", "_"))
        context.minimum_version = context.maximum_version = version
    if how.alpn:
        context.set_alpn_protocols(list(how.alpn))
    if how.certificate:
        context.load_cert_chain(
            certificates[f"{how.certificate}_cert"], certificates[f"{how.certificate}_key"]
        )
    return context
