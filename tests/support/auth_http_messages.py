# SPDX-License-Identifier: Apache-2.0
"""Requests and responses of the authentication service, built without the code under test."""

from __future__ import annotations

import re
import ssl
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from mailproxy_config.model import Protocol, VerifyClient
from support.tls_identities import Identities
from support.transcripts import Transcript, unescaped

_METHODS: Final = {
    "password": "plain",
    "plain": "plain",
    "login": "plain",
    "cram_md5": "cram-md5",
    "apop": "apop",
    "external": "external",
    "none": "none",
    "xoauth2": "xoauth2",
    "oauthbearer": "oauthbearer",
}


def auth_request(
    description: str, transcript: Transcript, tls: ssl.SSLObject | None, identities: Identities
) -> bytes:
    """Return the complete request that the words after ``authorize`` in a transcript describe."""
    user, password, *words = description.split(" ")
    clauses = _clauses(words)
    method = clauses.get("by", "password")
    lines = [
        b"GET /auth HTTP/1.1",
        b"Host: 127.0.0.1",
        b"Auth-Method: " + _METHODS[method].encode(),
        b"Auth-User: " + _escape(parse_word(user)),
        b"Auth-Pass: " + _escape(b"" if password == "-" else parse_word(password)),
    ]
    if "salt" in clauses:
        lines.append(b"Auth-Salt: " + parse_word(clauses["salt"]))
    client = transcript.client()
    named_address, named_host = transcript.named
    protocol = transcript.server.protocol
    lines += [
        b"Auth-Protocol: " + protocol.value.encode(),
        b"Auth-Login-Attempt: " + clauses.get("attempt", "1").encode(),
        b"Client-IP: " + (named_address or client.address).encode(),
    ]
    if protocol is Protocol.SMTP:
        found = next((s.text.split(" -> ")[1] for s in transcript.steps if "resolve ->" in s.text), None)
        lines.append(b"Client-Host: " + (named_host or found or "[UNAVAILABLE]").encode())
    if client.address != "unix:":
        server = "2001:db8::2" if ":" in client.address else "198.51.100.1"
        lines += [
            f"Proxy-Protocol-Addr: {client.address}".encode(),
            b"Proxy-Protocol-Port: 4711",
            f"Proxy-Protocol-Server-Addr: {server}".encode(),
            b"Proxy-Protocol-Server-Port: 25",
        ]
    if "rcpt" in clauses:
        envelope = zip(("Helo", "From", "To"), ("helo", "mail", "rcpt"), strict=True)
        lines += [f"Auth-SMTP-{name}: ".encode() + parse_word(clauses[key]) for name, key in envelope]
    if tls is not None:
        lines += _tls_headers(tls, transcript, identities)
    return b"\r\n".join([*lines, b"", b""])


def auth_response(text: str, port: int) -> bytes:
    """Return the response that the words after ``->`` describe; all upstreams have one loopback port."""
    head, _, reason = text.partition(":" if text.endswith(":") else ": ")
    verdict, *others = head.split(", ")
    verb, _, rest = verdict.partition(" ")
    named = dict(part.split(" ", 1) for part in others)
    lines = [b"HTTP/1.1 200 OK", b"Content-Length: 0"]
    if verb == "granted":
        lines += [b"Auth-Status: OK", b"Auth-Server: 127.0.0.1", b"Auth-Port: %d" % port]
    elif verb == "wait":
        lines += [b"Auth-Status: WAIT", b"Auth-Wait: " + rest.removesuffix("s").encode()]
    else:
        lines.append(b"Auth-Status: " + unescaped(reason))
    if "wait" in named:
        lines.append(b"Auth-Wait: " + named["wait"].removesuffix("s").encode())
    headers = {
        "user": b"Auth-User: ",
        "password": b"Auth-Pass: ",
        "code": b"Auth-Error-Code: ",
        "sasl": b"Auth-Error-SASL: ",
    }
    lines += [header + parse_word(named[key]) for key, header in headers.items() if key in named]
    return b"\r\n".join([*lines, b"", b""])


def parse_word(text: str) -> bytes:
    """Return the bytes that one word of a transcript represents."""
    return b"" if text == '""' else unescaped(text)


def _clauses(words: list[str]) -> dict[str, str]:
    return dict(zip(words[::2], words[1::2], strict=True))


def _escape(data: bytes) -> bytes:
    return re.sub(rb"[\x00-\x20%]", lambda match: b"%%%02X" % match[0][0], data)


def _tls_headers(tls: ssl.SSLObject, transcript: Transcript, identities: Identities) -> list[bytes]:
    cipher = tls.cipher()
    assert cipher is not None
    lines = ["Auth-SSL: on", f"Auth-SSL-Protocol: {tls.version()}", f"Auth-SSL-Cipher: {cipher[0]}"]
    if transcript.server.ssl_verify_client is not VerifyClient.DISABLED:
        kind, _, verify_error = transcript.facts.get("certificate", "none").partition(" ")
        certificate = identities.certificate(kind, verify_error)
        verdict = {"none": "NONE", "valid": "SUCCESS"}.get(kind, f"FAILED:{verify_error}")
        lines.append(f"Auth-SSL-Verify: {verdict}")
        lines += [] if certificate is None else _certificate_headers(certificate)
    return [line.encode() for line in lines]


def _certificate_headers(certificate: x509.Certificate) -> list[str]:
    serial = f"{certificate.serial_number:X}"
    return [
        f"Auth-SSL-Subject: {certificate.subject.rfc4514_string()}",
        f"Auth-SSL-Issuer: {certificate.issuer.rfc4514_string()}",
        f"Auth-SSL-Serial: {serial.rjust(len(serial) + len(serial) % 2, '0')}",
        f"Auth-SSL-Fingerprint: {certificate.fingerprint(hashes.SHA1()).hex()}",
    ]
