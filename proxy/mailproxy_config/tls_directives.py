# SPDX-License-Identifier: Apache-2.0
"""The part of the table that nginx's mail_ssl module knows."""

from __future__ import annotations

from typing import Final

from mailproxy_config import file_values
from mailproxy_config.value_types import FLAG, NUMBER, SEC_TIME, choice, enum_set, text

from .directive import Directive, Inheritance
from .model import StartTls, VerifyClient

_LIST: Final = Inheritance.LIST
_SSL: Final = "mail_ssl"
_STARTTLS: Final = choice({"off": "Disabled", "on": "Enabled", "only": "Only"}, StartTls)
_TLS_VERSIONS: Final = enum_set(("SSLv2", "SSLv3", "TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3"), str)

_VERIFY_CLIENT: Final = choice(
    {"off": "Disabled", "on": "Required", "optional": "Optional", "optional_no_ca": "OptionalNoCA"},
    VerifyClient,
)

TLS_DIRECTIVES: Final = (
    Directive(
        name="starttls",
        module=_SSL,
        type=_STARTTLS,
        default="Disabled",
        meaning="Offers STARTTLS or STLS (Enabled), or also demands it before login (Only).",
    ),
    Directive(
        name="ssl_certificate",
        module=_SSL,
        type=file_values.CERTIFICATES,
        default=[],
        inheritance=_LIST,
        meaning="Certificates with their keys, one of each key type; needed for ssl listeners and starttls.",
    ),
    Directive(
        name="ssl_certificate_compression",
        module=_SSL,
        type=FLAG,
        default=False,
        meaning="Compresses certificates in TLS 1.3 handshakes, where the TLS library can.",
    ),
    Directive(
        name="ssl_protocols",
        module=_SSL,
        type=_TLS_VERSIONS,
        default=["TLSv1.2", "TLSv1.3"],
        inheritance=_LIST,
        meaning="The TLS versions that clients may use.",
    ),
    Directive(
        name="ssl_ciphers",
        module=_SSL,
        type=text(longest=2048, syntax="OpenSSL cipher list"),
        default="HIGH:!aNULL:!MD5",
        meaning="The ciphers for TLS 1.2 and older, as an OpenSSL list.",
    ),
    Directive(
        name="ssl_prefer_server_ciphers",
        module=_SSL,
        type=FLAG,
        default=False,
        meaning="Prefers the order of ssl_ciphers to the client's.",
    ),
    Directive(
        name="ssl_ecdh_curve",
        module=_SSL,
        type=text(longest=256, syntax="auto | curve[:curve...]"),
        default="auto",
        meaning="The curves for key exchange, separated by colons; auto leaves them to the TLS library.",
    ),
    Directive(
        name="ssl_dhparam",
        module=_SSL,
        type=file_values.FILE,
        meaning="Parameters for DHE ciphers (PEM); without them there are no such ciphers.",
    ),
    Directive(
        name="ssl_password_file",
        module=_SSL,
        type=file_values.FILE,
        meaning="Pass phrases of private keys, one a line.",
    ),
    Directive(
        name="ssl_session_cache",
        module=_SSL,
        type=file_values.SESSION_CACHE,
        default=["None"],
        inheritance=_LIST,
        meaning="Where TLS sessions are kept for resumption.",
    ),
    Directive(
        name="ssl_session_timeout",
        module=_SSL,
        type=SEC_TIME,
        default="5m",
        meaning="How long a client may resume a TLS session.",
    ),
    Directive(
        name="ssl_session_tickets",
        module=_SSL,
        type=FLAG,
        default=True,
        meaning="Lets clients resume TLS sessions with tickets.",
    ),
    Directive(
        name="ssl_session_ticket_key",
        module=_SSL,
        type=file_values.FILES,
        default=[],
        inheritance=_LIST,
        meaning="Keys of session tickets (48 or 80 bytes); the first encrypts, all decrypt.",
    ),
    Directive(
        name="ssl_verify_client",
        module=_SSL,
        type=_VERIFY_CLIENT,
        default="Disabled",
        meaning="Whether clients are asked for a TLS certificate, and whether they must have a good one.",
    ),
    Directive(
        name="ssl_verify_depth",
        module=_SSL,
        type=NUMBER,
        default=1,
        meaning="How long the chain of a client's certificate may be.",
    ),
    Directive(
        name="ssl_client_certificate",
        module=_SSL,
        type=file_values.FILE,
        meaning="Authorities trusted for client certificates, whose names are sent to clients (PEM).",
    ),
    Directive(
        name="ssl_trusted_certificate",
        module=_SSL,
        type=file_values.FILE,
        meaning="Authorities trusted for client certificates, whose names are not sent to clients (PEM).",
    ),
    Directive(
        name="ssl_crl",
        module=_SSL,
        type=file_values.FILE,
        meaning="Revoked client certificates (PEM); checked for the whole chain.",
    ),
    Directive(
        name="ssl_conf_command",
        module=_SSL,
        type=file_values.CONF_COMMANDS,
        default=[],
        inheritance=_LIST,
        meaning="OpenSSL configuration commands, applied last.",
    ),
)
"""Directives about TLS with clients, for ``spec.mail`` and every server."""

FOLDED_DIRECTIVES: Final = (
    Directive(
        name="ssl_certificate_key",
        module=_SSL,
        type=file_values.CERTIFICATES,
        inheritance=_LIST,
        part_of="ssl_certificate",
        meaning="The private key of the certificate in the same place of the list; part of sslCertificate.",
    ),
)
"""Directives of nginx whose value stands in another one's field."""
