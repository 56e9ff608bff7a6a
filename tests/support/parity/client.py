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
class TlsSession:
    """A TLS session for resumption, and the context that it belongs to."""

    context: ssl.SSLContext
    session: ssl.SSLSession | None


class ClientConnection:
    """One connection to a program.

    Attributes:
        received: All bytes received so far, decrypted if there is TLS.
        ending: ``open``, ``eof``, ``notified`` (a TLS close_notify before the end) or ``reset``.
    """

    def __init__(self, sock: socket.socket, activity: Activity) -> None:
        self.sock = sock
        self.activity = activity
        self.received = b""
        self.ending = "open"
        self._got_close_notify = False
        self._tls: ssl.SSLObject | None = None
        self._is_handshaking = False
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(sock, self._readable)

    @property
    def is_open(self) -> bool:
        """Whether the other side has not ended the connection."""
        return self.ending == "open"

    async def send(self, data: bytes) -> None:
        """Send bytes; errors of a closed connection are ignored."""
        if self._tls is not None:
            with contextlib.suppress(ssl.SSLError):
                self._tls.write(data)
            data = self._outgoing.read()
        await self._send_raw(data)

    async def send_pieces(self, pieces: tuple[bytes, ...]) -> None:
        """Send each piece separately, so that the pieces probably arrive separately."""
        for piece in pieces:
            if not self.is_open:
                return
            await self.send(piece)
            await asyncio.sleep(_PAUSE)

    async def start_tls(self, step: Tls, context: ssl.SSLContext | TlsSession, seconds: float) -> str:
        """Perform a TLS handshake; return the negotiated parameters or the error."""
        if step.ahead:
            await self._send_raw(step.ahead)
        if not self.is_open:
            return "not begun"
        resumable = context if isinstance(context, TlsSession) else TlsSession(context, None)
        self._tls = resumable.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname=step.name or None, session=resumable.session
        )
        self._is_handshaking = True
        try:
            async with asyncio.timeout(seconds):
                outcome = await self._handshake(self._tls, step.behind)
        except TimeoutError:
            outcome = "failed: nothing came"
        self._is_handshaking = False
        if outcome.startswith("failed"):
            self._tls = None
        else:
            self._decrypt()
        return outcome

    async def _handshake(self, tls: ssl.SSLObject, behind: bytes) -> str:
        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._send_raw(self._outgoing.read())
                if not self.is_open:
                    return "failed: connection ended"
                await self.activity.next(0.5)
            except ssl.SSLError as error:
                await self._send_raw(self._outgoing.read())
                return f"failed: {error.reason}"
            else:
                if behind:
                    tls.write(behind)
                await self._send_raw(self._outgoing.read())
                return _negotiated(tls)

    async def _send_raw(self, data: bytes) -> None:
        with contextlib.suppress(ConnectionError):
            await self._loop.sock_sendall(self.sock, data)

    def _readable(self) -> None:
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._record_end("reset")
            return
        if not data:
            self._record_end("notified" if self._got_close_notify else "eof")
        elif self._tls is None:
            self.received += data
        else:
            self._incoming.write(data)
            if not self._is_handshaking:
                self._decrypt()
        self.activity.signal()

    def _decrypt(self) -> None:
        assert self._tls is not None
        try:
            while data := self._tls.read(_CHUNK):
                self.received += data
            self._send_close_notify()
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self._send_close_notify()
        except ssl.SSLError as error:
            self.received += f"[{error.reason}]".encode()

    def _send_close_notify(self) -> None:
        self._got_close_notify = True
        assert self._tls is not None
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        with contextlib.suppress(OSError):
            self.sock.send(self._outgoing.read())

    def _record_end(self, ending: str) -> None:
        self._loop.remove_reader(self.sock)
        self.ending = ending
        self.activity.signal()

    def tls_session(self, context: ssl.SSLContext) -> TlsSession:
        """Return the TLS session, for another connection."""
        return TlsSession(context, self._tls.session if self._tls is not None else None)

    def send_eof(self) -> None:
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


def _negotiated(tls: ssl.SSLObject) -> str:
    cipher = tls.cipher()
    words = [
        tls.version() or "",
        cipher[0] if cipher else "",
        tls.selected_alpn_protocol() or "",
        "resumed" if tls.session_reused else "",
    ]
    return " ".join(filter(None, words))


def client_context(step: Tls, certificates: dict[str, str]) -> ssl.SSLContext:
    """Return the TLS context of a client."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if step.version:
        version = getattr(ssl.TLSVersion, step.version.replace(".", "_"))
        context.minimum_version = context.maximum_version = version
    if step.alpn:
        context.set_alpn_protocols(list(step.alpn))
    if step.certificate:
        context.load_cert_chain(
            certificates[f"{step.certificate}_cert"], certificates[f"{step.certificate}_key"]
        )
    return context
