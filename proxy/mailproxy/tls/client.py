# SPDX-License-Identifier: Apache-2.0
"""TLS to the authentication service and to token issuers, for addresses that begin with ``https://``.

nginx has none.  The service's certificate must be valid for its name, and its
authority must be trusted by the system (or be in ``SSL_CERT_FILE``).
``VERIFY_X509_STRICT``, the default since Python 3.13, is off: it requires
extensions of RFC 5280 that many private authorities do not use.
"""

from __future__ import annotations

import socket
import ssl


def client_context() -> ssl.SSLContext:
    """Return the settings of TLS to services: certificates are verified as above."""
    context = ssl.create_default_context()
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


class ClientTls:
    """TLS to one service.

    Args:
        host: Its name or address as configured; an IPv6 address may be in brackets.
    """

    __slots__ = ("_context", "_host")

    def __init__(self, host: str) -> None:
        self._host = host.strip("[]")
        self._context = client_context()

    def wrap(self, sock: socket.socket) -> ssl.SSLSocket:
        """Start TLS on a connected non-blocking socket; the handshake is a separate step."""
        return self._context.wrap_socket(
            sock, server_hostname=self._host, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )


def describe_tls_error(error: OSError) -> str:
    """Return why a handshake failed, with OpenSSL's text if it has one."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return type(error).__name__
