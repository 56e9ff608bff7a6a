# SPDX-License-Identifier: Apache-2.0
"""Directives about upstreams that nginx's mail module does not have.

Those of TLS have the names and meanings of ``ngx_stream_proxy_module``, except that certificates are
verified unless ``proxy_ssl_verify`` is off.
"""

from __future__ import annotations

from typing import Final

from mailproxy_config.model import ProxySsl, SendIdentity, XclientMode
from mailproxy_config.schema import String
from mailproxy_config.secret_refs import FILE
from mailproxy_config.tls_directives import CERTIFICATE, CONF_COMMANDS, TLS_VERSIONS
from mailproxy_config.value_types import (
    FLAG,
    NUMBER,
    Directive,
    ErrorPath,
    Inheritance,
    ValueType,
    choice,
    control_character_rule,
    identity,
    parse_nginx_text,
    string_list,
    text,
)

_PEER_NAME: Final = ValueType(
    syntax="host name or IP address",
    schema=String(
        max_length=253,
        pattern=r"^$|^[A-Za-z0-9:]([-_.A-Za-z0-9:]*[A-Za-z0-9:])?$",
        hint="a host name or an IP address",
    ),
    read=identity,
    write=identity,
    nginx=parse_nginx_text,
)
_UPSTREAM: Final = "mail_proxy"
_PROXY_SSL: Final = choice({"off": "Disabled", "on": "Enabled", "starttls": "Starttls"}, ProxySsl)
_SEND_IDENTITY: Final = choice({"off": "Disabled", "auto": "Auto", "required": "Required"}, SendIdentity)
_XCLIENT_MODE: Final = choice({"always": "Always", "auto": "Auto", "required": "Required"}, XclientMode)
_MAX_ALPN: Final = 255


def _alpn(value: str, _: ErrorPath) -> str:
    if not value.isascii() or len(value) > _MAX_ALPN:
        raise ValueError("the name of an application protocol is ASCII of at most 255 characters")
    return value


UPSTREAM_DIRECTIVES: Final = (
    Directive(
        name="auth_http_variables",
        module="mail_auth_http",
        type=FLAG,
        default=False,
        is_ours=True,
        meaning=(
            "Replaces $remote_addr, $remote_port, $server_addr, $server_port, $protocol, $ssl_server_name, "
            "$session_id in authHttpHeader."
        ),
    ),
    Directive(
        name="proxy_ssl",
        module=_UPSTREAM,
        type=_PROXY_SSL,
        default="Disabled",
        is_ours=True,
        meaning=(
            "TLS to mail servers: Disabled, Enabled (from the first byte), or Starttls (required, no login "
            "without it)."
        ),
    ),
    Directive(
        name="proxy_ssl_verify",
        module=_UPSTREAM,
        type=FLAG,
        default=True,
        is_ours=True,
        meaning="Verifies the certificate of the mail server and its name.",
    ),
    Directive(
        name="proxy_ssl_verify_depth",
        module=_UPSTREAM,
        type=NUMBER,
        default=1,
        is_ours=True,
        meaning="Maximum number of intermediate certificates in the mail server's chain.",
    ),
    Directive(
        name="proxy_ssl_name",
        module=_UPSTREAM,
        type=_PEER_NAME,
        default="",
        is_ours=True,
        meaning=(
            "Name that the mail server's certificate must have, sent in SNI. Empty: the host name or "
            "address in Auth-Server."
        ),
    ),
    Directive(
        name="proxy_ssl_server_name",
        module=_UPSTREAM,
        type=FLAG,
        default=True,
        is_ours=True,
        meaning="Sends proxySslName, or the host name in Auth-Server, in SNI. An IP address is never sent.",
    ),
    Directive(
        name="proxy_ssl_trusted_certificate",
        module=_UPSTREAM,
        type=FILE,
        is_ours=True,
        meaning="CA certificates for verifying mail servers (PEM). Not set: the CAs of the system.",
    ),
    Directive(
        name="proxy_ssl_crl",
        module=_UPSTREAM,
        type=FILE,
        is_ours=True,
        meaning="Certificate revocation lists for mail servers (PEM). The whole chain is checked.",
    ),
    Directive(
        name="proxy_ssl_certificate",
        module=_UPSTREAM,
        type=CERTIFICATE,
        is_ours=True,
        meaning="Client certificate with private key, for mail servers that request one.",
    ),
    Directive(
        name="proxy_ssl_password_file",
        module=_UPSTREAM,
        type=FILE,
        is_ours=True,
        meaning="Passphrases of the private key of proxySslCertificate, one per line.",
    ),
    Directive(
        name="proxy_ssl_protocols",
        module=_UPSTREAM,
        type=TLS_VERSIONS,
        default=["TLSv1.2", "TLSv1.3"],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="TLS versions enabled for mail servers.",
    ),
    Directive(
        name="proxy_ssl_ciphers",
        module=_UPSTREAM,
        type=text(max_length=2048, syntax="OpenSSL cipher list"),
        default="DEFAULT",
        is_ours=True,
        meaning="Ciphers for TLS 1.2 and earlier to mail servers, in the OpenSSL format.",
    ),
    Directive(
        name="proxy_ssl_session_reuse",
        module=_UPSTREAM,
        type=FLAG,
        default=True,
        is_ours=True,
        meaning="Resumes TLS sessions with mail servers. A session of changed files is not resumed.",
    ),
    Directive(
        name="proxy_ssl_alpn",
        module=_UPSTREAM,
        type=string_list(
            _alpn,
            syntax="list of text",
            max_items=8,
            max_length=_MAX_ALPN,
            rules=(control_character_rule("an application protocol"),),
        ),
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="Application protocols offered to mail servers (ALPN). Empty: the extension is not sent.",
    ),
    Directive(
        name="proxy_ssl_conf_command",
        module=_UPSTREAM,
        type=CONF_COMMANDS,
        default=[],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning="OpenSSL configuration commands for TLS to mail servers, applied last.",
    ),
    Directive(
        name="proxy_id",
        module=_UPSTREAM,
        type=_SEND_IDENTITY,
        default="Disabled",
        is_ours=True,
        meaning=(
            "Sends the client's address to IMAP servers with ID: Disabled, Auto (if the server lists ID), or "
            "Required."
        ),
    ),
    Directive(
        name="proxy_pop3_xclient",
        field="proxyXclient",
        module=_UPSTREAM,
        type=_SEND_IDENTITY,
        default="Disabled",
        is_ours=True,
        meaning=(
            "Sends the client's address to POP3 servers with Dovecot's XCLIENT: Disabled, Auto (if offered), "
            "or Required."
        ),
    ),
    Directive(
        name="xclient_mode",
        module=_UPSTREAM,
        type=_XCLIENT_MODE,
        default="Always",
        is_ours=True,
        meaning=(
            "With xclient: Always (as nginx), Auto (the attributes that the SMTP server lists, if any), or "
            "Required."
        ),
    ),
    Directive(
        name="proxy_smtp_guard",
        module=_UPSTREAM,
        type=FLAG,
        default=True,
        is_ours=True,
        meaning=(
            "Ends a login if the mail server would accept XCLIENT from the client, who could then take any "
            "name and address."
        ),
    ),
    Directive(
        name="proxy_imap_guard",
        module=_UPSTREAM,
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Ends a login if the mail server offers UNAUTHENTICATE, which allows to try passwords.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""


UPSTREAM_FOLDED_DIRECTIVES: Final = (
    Directive(
        name="proxy_ssl_certificate_key",
        module=_UPSTREAM,
        type=CERTIFICATE,
        part_of="proxy_ssl_certificate",
        is_ours=True,
        meaning="Private key of proxy_ssl_certificate. Part of proxySslCertificate.",
    ),
)
"""Directives of an ``nginx.conf`` whose value is part of another directive's field."""
