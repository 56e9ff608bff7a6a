# SPDX-License-Identifier: Apache-2.0
"""Builders for configuration: nginx's defaults, and only what a test changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from mailproxy_config.model import (
    AuthHttp,
    AuthMethod,
    AuthMode,
    ByteCount,
    ListenConfig,
    LogLevel,
    Protocol,
    ProxyConfig,
    ProxySsl,
    Seconds,
    SendIdentity,
    SendProxyProtocol,
    ServerConfig,
    SessionCache,
    SmtpHelo,
    StartTls,
    Tempfail,
    VerifyClient,
    XclientMode,
)
from mailproxy_config.upstream_login import ProxyAuth

NOT_OF_NGINX: Final = frozenset(
    {
        *("auth_http_keepalive", "auth_http_max_connections", "pop3_client_buffer"),
        *("auth_http_server_names", "auth_http_server_networks"),
        *("auth_http_variables", "proxy_ssl", "proxy_ssl_verify", "proxy_ssl_verify_depth", "proxy_ssl_name"),
        *("proxy_ssl_server_name", "proxy_ssl_trusted_certificate", "proxy_ssl_crl"),
        *("proxy_ssl_certificate", "proxy_ssl_certificate_key", "proxy_ssl_password_file"),
        *("proxy_ssl_protocols", "proxy_ssl_ciphers", "proxy_ssl_session_reuse", "proxy_ssl_alpn"),
        *("proxy_ssl_conf_command", "proxy_smtp_guard", "proxy_imap_guard", "proxy_id"),
        *("oauth_strict", "auth_mode", "oauth_issuer", "route", "auth_user_file"),
        *("oauth_strict", "imap_id_command", "smtp_auth_command", "max_commands"),
        *("real_ip_command", "limit_rate", "limit_rate_after"),
        *("proxy_pop3_xclient", "xclient_mode"),
        *("ssl_certificate_selector", "ssl_reject_handshake", "server_names"),
        *("proxy_connect_timeout", "proxy_next_upstream", "proxy_next_upstream_tries"),
        "proxy_next_upstream_timeout",
        *("proxy_protocol_unique_id", "proxy_forward", "auth_http_facts", "auth_http_overrides"),
        *("proxy_tempfail", "proxy_smtp_helo"),
        *("proxy_auth", "proxy_auth_require_tls", "proxy_master_user", "proxy_auth_token"),
    }
)
"""Directives that nginx does not have."""
PORTS: Final = {Protocol.IMAP: 143, Protocol.POP3: 110, Protocol.SMTP: 25}

_DEFAULTS: Final[dict[str, Any]] = {
    "server_name": "mail.example.com",
    "error_log": LogLevel.ERROR,
    "timeout": Seconds(60.0),
    "max_errors": 5,
    "resolver": None,
    "resolver_timeout": Seconds(30.0),
    "auth_http": AuthHttp(host="localhost", port=9000, uri="/cgi-bin/nginxauth.cgi"),
    "auth_http_timeout": Seconds(60.0),
    "auth_http_header": (),
    "auth_http_pass_client_cert": False,
    "auth_http_keepalive": True,
    "auth_http_max_connections": None,
    "auth_http_server_names": False,
    "auth_http_server_networks": (),
    "imap_auth": frozenset({AuthMethod.PLAIN}),
    "imap_capabilities": ("IMAP4", "IMAP4rev1", "UIDPLUS"),
    "imap_client_buffer": ByteCount(4096),
    "pop3_auth": frozenset({AuthMethod.PLAIN}),
    "pop3_capabilities": ("TOP", "USER", "UIDL"),
    "pop3_client_buffer": ByteCount(512),
    "smtp_auth": frozenset({AuthMethod.PLAIN, AuthMethod.LOGIN}),
    "smtp_capabilities": (),
    "smtp_client_buffer": ByteCount(4096),
    "smtp_greeting_delay": Seconds(0.0),
    "proxy_buffer": ByteCount(4096),
    "proxy_timeout": Seconds(24 * 3600.0),
    "proxy_pass_error_message": False,
    "proxy_smtp_auth": False,
    "proxy_protocol": SendProxyProtocol.DISABLED,
    "xclient": True,
    "set_real_ip_from": (),
    "starttls": StartTls.DISABLED,
    "ssl_certificate": (),
    "ssl_certificate_selector": None,
    "ssl_reject_handshake": False,
    "ssl_certificate_compression": False,
    "ssl_protocols": frozenset({"TLSv1.2", "TLSv1.3"}),
    "ssl_ciphers": "HIGH:!aNULL:!MD5",
    "ssl_prefer_server_ciphers": False,
    "ssl_ecdh_curve": "auto",
    "ssl_dhparam": None,
    "ssl_password_file": None,
    "ssl_session_cache": SessionCache(),
    "ssl_session_timeout": Seconds(300.0),
    "ssl_session_tickets": True,
    "ssl_session_ticket_key": (),
    "ssl_verify_client": VerifyClient.DISABLED,
    "ssl_verify_depth": 1,
    "ssl_client_certificate": None,
    "ssl_trusted_certificate": None,
    "ssl_crl": None,
    "ssl_conf_command": (),
    "auth_http_variables": False,
    "proxy_ssl": ProxySsl.DISABLED,
    "proxy_ssl_verify": True,
    "proxy_ssl_verify_depth": 1,
    "proxy_ssl_name": "",
    "proxy_ssl_server_name": True,
    "proxy_ssl_trusted_certificate": None,
    "proxy_ssl_crl": None,
    "proxy_ssl_certificate": None,
    "proxy_ssl_password_file": None,
    "proxy_ssl_protocols": frozenset({"TLSv1.2", "TLSv1.3"}),
    "proxy_ssl_ciphers": "DEFAULT",
    "proxy_ssl_session_reuse": True,
    "proxy_ssl_alpn": (),
    "proxy_ssl_conf_command": (),
    "proxy_smtp_guard": True,
    "proxy_imap_guard": False,
    "oauth_strict": False,
    "auth_mode": AuthMode.HTTP,
    "auth_user_file": None,
    "route": (),
    "oauth_issuer": (),
    "imap_id_command": None,
    "smtp_auth_command": True,
    "real_ip_command": False,
    "max_commands": 0,
    "limit_rate": ByteCount(0),
    "limit_rate_after": ByteCount(0),
    "proxy_id": SendIdentity.DISABLED,
    "proxy_pop3_xclient": SendIdentity.DISABLED,
    "xclient_mode": XclientMode.ALWAYS,
    "proxy_connect_timeout": None,
    "proxy_next_upstream": frozenset(),
    "proxy_next_upstream_tries": 3,
    "proxy_next_upstream_timeout": Seconds(30.0),
    "proxy_protocol_unique_id": False,
    "proxy_forward": (),
    "auth_http_facts": False,
    "auth_http_overrides": False,
    "proxy_tempfail": Tempfail.NGINX,
    "proxy_smtp_helo": SmtpHelo.SERVER,
    "proxy_auth": (ProxyAuth.NATIVE,),
    "proxy_auth_require_tls": None,
    "proxy_master_user": None,
    "proxy_auth_token": None,
}


def server(protocol: Protocol, **directives: Any) -> ServerConfig:
    """One server with nginx's defaults and these directives, named as in ``ServerConfig``."""
    values = {
        "name": protocol.value,
        "protocol": protocol,
        "listen": (ListenConfig(port=PORTS[protocol]),),
        **_DEFAULTS,
        **directives,
    }
    return ServerConfig(**values)


def without_logs(config: ProxyConfig) -> ProxyConfig:
    """The same configuration with standard error as its only log, as a manifest has it."""
    servers = tuple(replace(server, error_logs=()) for server in config.servers)
    return replace(config, error_logs=(), servers=servers)
