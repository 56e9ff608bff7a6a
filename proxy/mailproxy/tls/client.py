# SPDX-License-Identifier: Apache-2.0
"""TLS towards the authorization service, for ``auth_http`` addresses that begin with ``https://``.

nginx has none.  The service's certificate must be valid for its name and come
from an authority that the system trusts (or those of ``SSL_CERT_FILE``).  It is
verified as OpenSSL verifies by default: Python 3.13 also demands extensions of RFC 5280
that the private authorities of many sites lack (``VERIFY_X509_STRICT``).
"""

from __future__ import annotations

import socket
import ssl


class ClientTls:
    """How to make sure of one service.

    Args:
        host: Its name or address, as configured; brackets of an IPv6 address do not count.
    """

    __slots__ = ("_context", "_host")

    def __init__(self, host: str) -> None:
        self._host = host.strip("[]")
        self._context = ssl.create_default_context()
        self._context.verify_flags &= ~ssl.VERIFY_X509_STRICT

    def over(self, sock: socket.socket) -> ssl.SSLSocket:
        """Take a connected non-blocking socket over, before its handshake."""
        return self._context.wrap_socket(
            sock, server_hostname=self._host, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )


def describe_tls_error(error: OSError) -> str:
    """Say what was wrong with a handshake, in OpenSSL's words where it has some."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return error.verify_message
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return type(error).__name__
