# SPDX-License-Identifier: Apache-2.0
"""What one session's log line is made of; filled in as the session goes on."""

from __future__ import annotations

from dataclasses import dataclass

from mailproxy.enums import CloseReason, LoginResult, Method, ProtocolErrorKind


@dataclass(slots=True, eq=False)
class SessionRecord:
    """Everything the log tells about one session.

    Times are seconds: ``started`` on the monotonic clock, the others spans,
    and ``None`` where that stage was never reached.  ``user`` is as the client
    wrote it; the log escapes and cuts it.  There is no field for a password.
    """

    session: str = ""
    """From ``Log.session_id``."""
    server: str = ""
    protocol: str = ""
    client: str = ""
    """The client's address without its port (after ``set_real_ip_from``)."""
    client_port: int = 0
    started: float = 0.0
    proxied: bool = False
    """Whether the address came from a PROXY header."""
    tls: str | None = None
    """TLS version, by OpenSSL's name."""
    cipher: str = ""
    user: bytes = b""
    method: Method | None = None
    result: LoginResult | None = None
    """How the last attempt to log in ended."""
    attempts: int = 0
    errors: int = 0
    error: ProtocolErrorKind | None = None
    """The last of them."""
    upstream: str = ""
    upstream_port: int = 0
    stage: str | None = None
    """Where the last login failed: ``auth``, or how far it had come at the upstream."""
    reply: bytes | None = None
    """What whoever refused it replied, fit for a log (``protocols.redaction``)."""
    auth_seconds: float | None = None
    """Time the authentication service took, all attempts together."""
    upstream_seconds: float | None = None
    """Time to connect and log in at the upstream."""
    login_seconds: float | None = None
    """From complete credentials to the answer to the client."""
    duration: float = 0.0
    bytes_to_upstream: int = 0
    bytes_to_client: int = 0
    reason: CloseReason | None = None
    is_silent: bool = False
    """Whether the client closed the connection before it sent anything."""
