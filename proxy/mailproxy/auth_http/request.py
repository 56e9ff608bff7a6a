# SPDX-License-Identifier: Apache-2.0
"""Rendering a request to the authentication service.

Headers, their order and escaping are those of nginx's ``auth_http``, so that
services written for it work unchanged.  What is the same for all requests of a
server is rendered once; a request fills in what differs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from mailproxy.auth_http.facts import facts_headers
from mailproxy.enums import Method
from mailproxy.protocols.client_variables import Part, parse_value, render_value
from mailproxy.protocols.types import (
    UNAVAILABLE,
    AuthRequest,
    Client,
    ClientCertificate,
    Envelope,
    ProxyAddresses,
    Secret,
    TlsInfo,
)
from mailproxy_config.model import Protocol, ServerConfig, VerifyClient

_ESCAPED: Final = re.compile(rb"[\x00-\x20%]")
_LINE_BREAKING: Final = re.compile(rb"[\x00\r\n]")
_UNKNOWN_HOST: Final = b"\r\nClient-Host: " + UNAVAILABLE
_HEADER_NAME: Final = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

_AUTH_METHOD: Final = {
    Method.PASSWORD: b"plain",
    Method.PLAIN: b"plain",
    Method.LOGIN: b"plain",
    Method.CRAM_MD5: b"cram-md5",
    Method.APOP: b"apop",
    Method.EXTERNAL: b"external",
    Method.NONE: b"none",
    Method.XOAUTH2: b"xoauth2",
    Method.OAUTHBEARER: b"oauthbearer",
}


class RequestTemplate:
    """The template of all requests of one ``server`` block.

    Args:
        server: The block; its ``auth_http``, protocol and TLS directives count.
        header_values: ``auth_http_header`` in configuration order, values
            already read from their files.
        keep_alive: Whether the connection is used again: with HTTP/1.1; else
            the request line has HTTP/1.0, as nginx's.

    Raises:
        ValueError: The host, the URI or a header contains CR, LF or NUL, or a
            header's name is invalid.  The message does not contain the value.
    """

    __slots__ = (
        "_pass_certificate",
        "_sends_facts",
        "_sends_host",
        "_templates",
        "_variable_headers",
        "_verifies",
    )

    def __init__(
        self,
        server: ServerConfig,
        header_values: Sequence[tuple[bytes, Secret | bytes]],
        *,
        keep_alive: bool,
    ) -> None:
        start = _escape_percent(_request_line(server, keep_alive=keep_alive))
        self._variable_headers: tuple[tuple[bytes, Sequence[Part]], ...] = ()
        if server.auth_http_variables:
            self._variable_headers = tuple(_variable_headers(header_values, server.protocol))
        tail = _escape_percent(_configured_headers(() if self._variable_headers else header_values))
        self._templates = {
            method: (
                b"%bAuth-Method: %b\r\nAuth-User: %%b\r\nAuth-Pass: %%b%%b\r\nAuth-Protocol: %b"
                b"\r\nAuth-Login-Attempt: %%d\r\nClient-IP: %%b%%b%b"
            )
            % (start, word, server.protocol.encode(), tail)
            for method, word in _AUTH_METHOD.items()
        }
        self._sends_host = server.protocol is Protocol.SMTP
        self._verifies = server.ssl_verify_client is not VerifyClient.DISABLED
        self._pass_certificate = server.auth_http_pass_client_cert
        self._sends_facts = server.auth_http_facts

    def render(self, request: AuthRequest) -> bytes:
        """Render a request, blank line included; it contains the client's password."""
        credentials = request.credentials
        client = request.client
        user, secret, challenge = credentials.user, credentials.password, credentials.challenge
        password = b"" if secret is None else secret.reveal()
        if _ESCAPED.search(user + password):
            user, password = _escaped(user), _escaped(password)
        client_headers = b""
        if self._sends_host or client.proxied is not None or client.tls is not None:
            client_headers = self._client_headers(client, request.envelope)
        if self._sends_facts:
            client_headers += facts_headers(client)
        rendered = self._templates[credentials.method] % (
            user,
            password,
            b"" if challenge is None else b"\r\nAuth-Salt: " + _one_line(challenge),
            request.attempt,
            client.address.encode("utf-8", "surrogateescape"),
            client_headers,
        )
        return rendered if not self._variable_headers else self._with_variables(rendered, client)

    def _with_variables(self, rendered: bytes, client: Client) -> bytes:
        """Add the configured headers behind the last header."""
        lines = (
            b"%b: %b\r\n" % (name, _one_line(render_value(parts, client)))
            for name, parts in self._variable_headers
        )
        return rendered[:-2] + b"".join(lines) + b"\r\n"

    def _client_headers(self, client: Client, envelope: Envelope | None) -> bytes:
        """Return the headers about the client: host name, PROXY addresses, envelope, TLS."""
        lines = b""
        if self._sends_host:
            is_known = client.host is not UNAVAILABLE
            lines = b"\r\nClient-Host: " + _one_line(client.host) if is_known else _UNKNOWN_HOST
        if client.proxied is not None:
            lines += _proxied(client.proxied)
        if envelope is not None:
            lines += _envelope(envelope)
        if client.tls is not None:
            lines += self._tls(client.tls)
        return lines

    def _tls(self, tls: TlsInfo) -> bytes:
        lines = b"\r\nAuth-SSL: on\r\nAuth-SSL-Protocol: %b\r\nAuth-SSL-Cipher: %b" % (
            tls.version.encode(),
            tls.cipher.encode(),
        )
        if not self._verifies:
            return lines
        lines += b"\r\nAuth-SSL-Verify: " + _verdict(tls)
        if tls.certificate is None:
            return lines
        lines += _certificate(tls.certificate)
        if self._pass_certificate:
            lines += b"\r\nAuth-SSL-Cert: " + _escaped(tls.certificate.pem)
        return lines


class EmptyTemplate(RequestTemplate):
    """The template of a server without an authentication service (``auth_mode upstream``)."""

    def __init__(self) -> None:
        pass

    def render(self, _: AuthRequest) -> bytes:
        """Return nothing: no request is sent."""
        return b""


def _escaped(data: bytes) -> bytes:
    """Percent-encode as nginx does."""
    return _ESCAPED.sub(_percent, data)


def _escape_percent(data: bytes) -> bytes:
    """Escape bytes for ``%`` formatting."""
    return data.replace(b"%", b"%%")


def _percent(byte: re.Match[bytes]) -> bytes:
    return b"%%%02X" % byte[0][0]


def _one_line(value: bytes) -> bytes:
    """Escape line breaks in a value that nginx sends unescaped.

    Frontends refuse such values and TLS libraries escape them; this is the
    second line of defence.
    """
    return _LINE_BREAKING.sub(_percent, value)


def _proxied(addresses: ProxyAddresses) -> bytes:
    return (
        b"\r\nProxy-Protocol-Addr: %b\r\nProxy-Protocol-Port: %d"
        b"\r\nProxy-Protocol-Server-Addr: %b\r\nProxy-Protocol-Server-Port: %d"
    ) % (
        _one_line(addresses.source),
        addresses.source_port,
        _one_line(addresses.destination),
        addresses.destination_port,
    )


def _envelope(envelope: Envelope) -> bytes:
    return b"\r\nAuth-SMTP-Helo: %b\r\nAuth-SMTP-From: %b\r\nAuth-SMTP-To: %b" % (
        _one_line(envelope.helo),
        _one_line(envelope.mail),
        _one_line(envelope.rcpt),
    )


def _verdict(tls: TlsInfo) -> bytes:
    if tls.certificate is None:
        return b"NONE"
    if tls.verify_code == 0:
        return b"SUCCESS"
    return b"FAILED:" + _one_line(tls.verify_error)


def _certificate(certificate: ClientCertificate) -> bytes:
    return (
        b"\r\nAuth-SSL-Subject: %b\r\nAuth-SSL-Issuer: %b\r\nAuth-SSL-Serial: %b\r\nAuth-SSL-Fingerprint: %b"
    ) % (
        _one_line(certificate.subject),
        _one_line(certificate.issuer),
        certificate.serial,
        certificate.fingerprint,
    )


def _request_line(server: ServerConfig, *, keep_alive: bool) -> bytes:
    """Return the request line and ``Host``, without a port, as nginx sends it."""
    where = server.auth_http
    if where is None:
        raise ValueError("auth_http: there is no authentication service")
    uri = where.uri if where.uri.startswith("/") else "/" + where.uri
    version = b"1.1" if keep_alive else b"1.0"
    return b"GET %b HTTP/%b\r\nHost: %b\r\n" % (
        _configured("auth_http", uri.encode()),
        version,
        _configured("auth_http", where.host.encode()),
    )


def _configured_headers(values: Sequence[tuple[bytes, Secret | bytes]]) -> bytes:
    lines = [b"\r\n"]
    for name, value in values:
        if not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"auth_http_header: {name!r} is not a header's name")
        data = value.reveal() if isinstance(value, Secret) else value
        lines.append(b"%b: %b\r\n" % (name, _configured("auth_http_header " + name.decode(), data)))
    lines.append(b"\r\n")
    return b"".join(lines)


def _variable_headers(
    values: Sequence[tuple[bytes, Secret | bytes]], protocol: Protocol
) -> list[tuple[bytes, Sequence[Part]]]:
    """Return the configured headers with their variables; values from Secrets have none."""
    _configured_headers(values)  # checks names and values
    found: list[tuple[bytes, Sequence[Part]]] = []
    for name, value in values:
        try:
            parts = [value.reveal()] if isinstance(value, Secret) else parse_value(value, protocol)
        except ValueError as error:
            raise ValueError(f"auth_http_header {name.decode()}: {error}") from None
        found.append((name, parts))
    return found


def _configured(directive: str, value: bytes) -> bytes:
    if _LINE_BREAKING.search(value):
        raise ValueError(f"{directive}: a value holds CR, LF or NUL")
    return value
