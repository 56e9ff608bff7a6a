# SPDX-License-Identifier: Apache-2.0
"""Headers with more facts about a client (``auth_http_facts``), which nginx does not send."""

from __future__ import annotations

import hashlib
import ssl

from mailproxy.protocols.client_identity import server_name
from mailproxy.protocols.types import Client


def facts_headers(client: Client) -> bytes:
    """Return the headers, each with a line end before it.

    ``Server-Addr`` and ``Server-Port`` are those that the client has connected to.  A client
    of a UNIX socket has no ports.  ``Auth-SSL-Server-Name`` is SNI, if it is a host name.
    """
    lines = b""
    address, port = client.connected
    if client.port:
        lines += b"\r\nClient-Port: %d" % client.port
    if address:
        lines += b"\r\nServer-Addr: %b" % address.encode("utf-8", "surrogateescape")
    if port:
        lines += b"\r\nServer-Port: %d" % port
    lines += b"\r\nX-Session-ID: %b\r\ntraceparent: %b" % (client.session_id.encode(), traceparent(client))
    if client.tls is None:
        return lines
    if name := server_name(client):
        lines += b"\r\nAuth-SSL-Server-Name: %b" % name
    certificate = client.tls.certificate
    if certificate is not None:
        fingerprint = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate.pem.decode())).hexdigest()
        lines += b"\r\nAuth-SSL-Fingerprint-SHA256: %b" % fingerprint.encode()
    return lines


def traceparent(client: Client) -> bytes:
    """Return the trace context of a session (W3C Trace Context level 1): the same for all its requests.

    The identifiers are digests of the session's ID.  The flag *sampled* is set: whoever asks for
    this header wants to see the traces.
    """
    digest = hashlib.sha256(client.session_id.encode()).hexdigest()
    return f"00-{digest[:32]}-{digest[32:48]}-01".encode()
