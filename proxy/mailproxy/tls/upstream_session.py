# SPDX-License-Identifier: Apache-2.0
"""Sessions of TLS connections to upstreams, which later connections resume.

``ssl`` serializes and parses a session, with its certificate, at each access: that costs as much as
the signature that resumption saves.  OpenSSL itself copies a session in a few microseconds.
"""

from __future__ import annotations

from mailproxy.tls.openssl import OpenSsl


class UpstreamSession:
    """A copy of a session; freed with this object."""

    __slots__ = ("_native", "_pointer")

    def __init__(self, native: OpenSsl, pointer: int) -> None:
        self._native = native
        self._pointer = pointer

    def __del__(self) -> None:
        self._native.lib.SSL_SESSION_free(self._pointer)

    def resume_with(self, connection: int) -> None:
        """Let a new connection (the address of its ``SSL``) resume this session.

        The connection gets a copy: OpenSSL marks the session of a connection that ends without
        close_notify as not resumable.
        """
        lib = self._native.lib
        if copy := lib.SSL_SESSION_dup(self._pointer):
            lib.SSL_set_session(connection, copy)
            lib.SSL_SESSION_free(copy)


def session_of(native: OpenSsl, connection: int, *, needs_ticket: bool) -> UpstreamSession | None:
    """Return a copy of a connection's session, if it can be resumed.

    Args:
        native: The library.
        connection: The address of its ``SSL``.
        needs_ticket: Whether only a session with a ticket can be resumed, as in TLS 1.3.
    """
    lib = native.lib
    session = lib.SSL_get_session(connection)
    if not session or not lib.SSL_SESSION_is_resumable(session):
        return None
    if needs_ticket and not lib.SSL_SESSION_has_ticket(session):
        return None
    copy = lib.SSL_SESSION_dup(session)
    return UpstreamSession(native, copy) if copy else None
