# SPDX-License-Identifier: Apache-2.0
"""Configurations that nginx and the proxy both reject, and some that both accept.

For every directive: a bad value, the wrong level, twice, too few and too many
arguments.  The cases common to all directives come from the table of directives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from mailproxy_config.directives import (
    FOLDED_DIRECTIVES,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
)

SERVER: Final = "mail { auth_http 127.0.0.1:9; server { listen 127.0.0.1:10143; protocol imap;\n%s\n} }"
MAIL: Final = "mail { auth_http 127.0.0.1:9; %s server { listen 127.0.0.1:10143; protocol imap; } }"
LISTEN: Final = "mail { auth_http 127.0.0.1:9; server { listen %s; protocol imap; } }"
_PAIR: Final = "ssl_certificate '@server_cert@'; ssl_certificate_key '@server_key@';"
_TLS: Final = f"starttls on; {_PAIR}"
_VERIFY: Final = f"{_TLS} ssl_verify_client on;"

ROWS: Final[dict[str, Directive]] = {
    row.name: row
    for row in (*MAIN_DIRECTIVES, *SERVER_DIRECTIVES, *LEVEL_DIRECTIVES, *FOLDED_DIRECTIVES)
    if not row.is_ours
}
"""Every directive of nginx."""

# A valid value for every directive.
VALID: Final = {
    "worker_processes": "2",
    "worker_connections": "64",
    "error_log": "stderr info",
    "protocol": "imap",
    "listen": "127.0.0.1:10144",
    "server_name": "mx.example.com",
    "timeout": "5s",
    "max_errors": "5",
    "resolver": "127.0.0.1",
    "resolver_timeout": "5s",
    "auth_http": "127.0.0.1:9",
    "auth_http_timeout": "5s",
    "auth_http_header": "X-Key secret",
    "auth_http_pass_client_cert": "on",
    "imap_auth": "plain",
    "imap_capabilities": "IMAP4rev1",
    "imap_client_buffer": "4k",
    "pop3_auth": "plain",
    "pop3_capabilities": "TOP",
    "smtp_auth": "plain",
    "smtp_capabilities": "DSN",
    "smtp_client_buffer": "4k",
    "smtp_greeting_delay": "1s",
    "proxy": "on",
    "proxy_buffer": "4k",
    "proxy_timeout": "1h",
    "proxy_pass_error_message": "on",
    "proxy_smtp_auth": "on",
    "proxy_protocol": "on",
    "xclient": "off",
    "set_real_ip_from": "10.0.0.0/8",
    "starttls": "off",
    "ssl_certificate": "c.pem",
    "ssl_certificate_key": "k.pem",
    "ssl_certificate_compression": "on",
    "ssl_protocols": "TLSv1.2",
    "ssl_ciphers": "HIGH",
    "ssl_prefer_server_ciphers": "on",
    "ssl_ecdh_curve": "auto",
    "ssl_dhparam": "d.pem",
    "ssl_password_file": "p",
    "ssl_session_cache": "none",
    "ssl_session_timeout": "5m",
    "ssl_session_tickets": "on",
    "ssl_session_ticket_key": "t",
    "ssl_verify_client": "off",
    "ssl_verify_depth": "2",
    "ssl_client_certificate": "ca.pem",
    "ssl_trusted_certificate": "ca.pem",
    "ssl_crl": "crl.pem",
    "ssl_conf_command": "Options ServerPreference",
}

# Values that both programs reject when they read the file, by the directive that is reported.
INVALID: Final[dict[str, tuple[str, ...]]] = {
    "error_log": ("stderr loud",),
    "protocol": ("lmtp", "IMAP"),
    "timeout": ("1x", "1m1h", "-1", "1.5s", "1S", "''", "'10 s'"),
    "max_errors": ("-1", "five", "5k"),
    "resolver": (
        "valid=5s",
        "127.0.0.1 valid=x",
        "127.0.0.1 ipv6=maybe",
        "127.0.0.1 ipv4=off ipv6=off",
        "127.0.0.1:0",
        "[::1",
    ),
    "resolver_timeout": ("x", "1M"),
    "auth_http": (":9000", "127.0.0.1:99999", "unix:", "[::1", "''", "127.0.0.1:x"),
    "auth_http_timeout": ("1y",),
    "auth_http_pass_client_cert": ("yes",),
    "imap_auth": ("apop", "none"),
    "imap_client_buffer": ("4g", "-1", "1.5k"),
    "pop3_auth": ("login", "none"),
    "smtp_auth": ("apop",),
    "smtp_client_buffer": ("x", "''"),
    "smtp_greeting_delay": ("soon",),
    "proxy": ("maybe",),
    "proxy_buffer": ("1.5k", "0x10"),
    "proxy_timeout": ("1S", "1M"),
    "proxy_pass_error_message": ("1",),
    "proxy_smtp_auth": ("true",),
    "proxy_protocol": ("v3", "v1"),
    "xclient": ("yes",),
    "set_real_ip_from": ("10.0.0.0/33", "10.0.0.0/", "''"),
    "starttls": ("yes", "required"),
    "ssl_certificate_compression": ("maybe",),
    "ssl_protocols": ("TLSv2", "TLSv1.2 TLSv1.9"),
    "ssl_prefer_server_ciphers": ("maybe",),
    "ssl_session_cache": ("shared", "shared:a", "shared:a:1k", "shared:a:x", "builtin:x"),
    "ssl_session_timeout": ("5ms", "x"),
    "ssl_session_tickets": ("sometimes",),
    "ssl_verify_client": ("maybe",),
    "ssl_verify_depth": ("deep", "-1"),
}

# Rejected when the TLS context is created: the directive, the message of nginx, and the lines.
TLS: Final = (
    ("ssl_certificate", "ssl_certificate", "starttls on;"),
    ("ssl_certificate_key", "ssl_certificate_key", "starttls on; ssl_certificate '@server_cert@';"),
    ("ssl_certificate_key", "ssl_certificate_key", f"{_TLS} ssl_certificate '@server_cert@';"),
    ("ssl_certificate", "cannot load certificate", "starttls on; ssl_certificate @; ssl_certificate_key @;"),
    (
        "ssl_certificate",
        "cannot load certificate",
        "starttls on; ssl_certificate '@server_key@'; ssl_certificate_key '@server_key@';",
    ),
    (
        "key",
        "cannot load certificate key",
        "starttls on; ssl_certificate '@server_cert@'; ssl_certificate_key @;",
    ),
    (
        "key",
        "key values mismatch",
        "starttls on; ssl_certificate '@server_cert@'; ssl_certificate_key '@other_key@';",
    ),
    ("ssl_ciphers", "SSL_CTX_set_cipher_list", f"{_TLS} ssl_ciphers nonsense;"),
    ("ssl_ecdh_curve", "SSL_CTX_set1_curves_list", f"{_TLS} ssl_ecdh_curve nonsense;"),
    ("ssl_dhparam", "BIO_new_file", f"{_TLS} ssl_dhparam @;"),
    ("ssl_dhparam", "PEM_read_bio_DHparams", f"{_TLS} ssl_dhparam '@server_cert@';"),
    ("ssl_password_file", "open()", f"{_TLS} ssl_password_file @;"),
    ("ssl_session_ticket_key", "open()", f"{_TLS} ssl_session_ticket_key @;"),
    ("ssl_session_ticket_key", "must be 48 or 80 bytes", f"{_TLS} ssl_session_ticket_key '@crl@';"),
    ("ssl_verify_client", "ssl_client_certificate", _VERIFY),
    ("ssl_client_certificate", "load", f"{_VERIFY} ssl_client_certificate @;"),
    ("ssl_client_certificate", "load", f"{_VERIFY} ssl_client_certificate '@server_key@';"),
    (
        "ssl_trusted_certificate",
        "load",
        f"{_VERIFY} ssl_client_certificate '@ca@'; ssl_trusted_certificate '@server_key@';",
    ),
    ("ssl_crl", "load", f"{_VERIFY} ssl_client_certificate '@ca@'; ssl_crl '@server_key@';"),
    ("ssl_conf_command", "SSL_CONF_cmd", f"{_TLS} ssl_conf_command Nonsense x;"),
    ("ssl_conf_command", "SSL_CONF_cmd", f"{_TLS} ssl_conf_command Options Nonsense;"),
)

ANY_VALUE_ACCEPTED: Final = {
    "server_name": "'any text'",
    "auth_http_header": "'any name' 'any value'",
    "imap_capabilities": "'any word' (x)",
    "pop3_capabilities": "'any word' (x)",
    "smtp_capabilities": "'any word' (x)",
}
"""Directives whose values nginx does not check, and one such value.

The proxy rejects those values that cannot be sent; see ``docs/quirks.md``.
"""

LISTENERS: Final = (
    "127.0.0.1:0",
    "127.0.0.1:65536",
    "127.0.0.1:port",
    "[::1",
    "[::zz]:143",
    ":143",
    "a/b:143",
    "unix:",
    "unix:/" + "x" * 200,
    "127.0.0.1:143 reuseport",
    "127.0.0.1:143 default_server",
    "127.0.0.1:143 ssl=on",
    "127.0.0.1:143 proxy_protocol=on",
    "127.0.0.1:143 bind=on",
    "127.0.0.1:143 backlog",
    "127.0.0.1:143 backlog=0",
    "127.0.0.1:143 backlog=-1",
    "127.0.0.1:143 rcvbuf=x",
    "127.0.0.1:143 sndbuf=1g",
    "[::1]:143 ipv6only=maybe",
    "[::1]:143 ipv6only",
    "127.0.0.1:143 so_keepalive",
    "127.0.0.1:143 so_keepalive=::",
    "127.0.0.1:143 so_keepalive=1:2:3:4",
    "127.0.0.1:143 so_keepalive=5ms::",
    "127.0.0.1:143 so_keepalive=maybe",
    "127.0.0.1:143 multipath=on",
    "127.0.0.1:143 nonsense",
    "127.0.0.1:150-140",
)
# The word that must be in the error, and the whole text.
WHOLE_FILES: Final = (
    ("auth_http", "mail { server { listen 143; } }"),
    ("listen", "mail { auth_http 127.0.0.1; server { protocol imap; } }"),
    ("protocol", "mail { auth_http 127.0.0.1; server { listen 127.0.0.1:10143; } }"),
    ("mail", "mail { } mail { }"),
    ("mail", "mail;"),
    ("mail", "mail x { }"),
    ("server", "server { }"),
    ("server", SERVER % "server { }"),
    ("server", MAIL % "server x { }"),
    ("server", MAIL % "server;"),
    ("mail", SERVER % "mail { }"),
    ("events", SERVER % "events { }"),
    ("location", SERVER % "location / { }"),
    ("timeuot", SERVER % "timeuot 5s;"),
    ("ssl_stapling", SERVER % "ssl_stapling on;"),
    ("ssl_buffer_size", SERVER % "ssl_buffer_size 4k;"),
    ("limit_conn", SERVER % "limit_conn a 5;"),
    ("duplicate", SERVER % "listen 127.0.0.1:10143;"),
    ("duplicate", "mail { auth_http 127.0.0.1; server { listen 143; } server { listen *:143; } }"),
    ("duplicate", "mail { auth_http 127.0.0.1; server { listen 143; listen 0.0.0.0:143; } }"),
    ("timeout", "mail { timeout 5s }"),
    ("expecting", "mail { server { listen 143;"),
    ("unexpected", "mail { } }"),
    ("timeout", 'mail { timeout "5s"x; }'),
    ("expecting", 'mail { timeout "5s; }'),
    ("nowhere.conf", "include nowhere.conf; mail { }"),
    ("include", "include; mail { }"),
    ("worker_processes", "worker_processes many; " + LISTEN % "127.0.0.1:10143"),
    ("events", "events { } " + LISTEN % "127.0.0.1:10143"),
    ("worker_shutdown_timeout", "worker_shutdown_timeout 1s; worker_shutdown_timeout 2s; mail { }"),
    ("worker_shutdown_timeout", "worker_shutdown_timeout soon; " + LISTEN % "127.0.0.1:10143"),
    ("worker_shutdown_timeout", SERVER % "worker_shutdown_timeout 5s;"),
)
ACCEPTED: Final = (
    SERVER % "timeout '1m 30s'; max_errors 0; resolver off x y; resolver_timeout 0;",
    SERVER % "xclient OFF; proxy_smtp_auth ON; starttls OFF;",
    SERVER % "imap_auth PLAIN Login; pop3_auth apop; pop3_auth plain; smtp_auth none external;",
    SERVER % "imap_capabilities 'A B' C; imap_capabilities D; smtp_capabilities 'SIZE 1';",
    SERVER % "auth_http http://127.0.0.1:9000/x?y; auth_http unix:/tmp/s:/uri; auth_http [::1]:5;",
    SERVER % "auth_http_header X '' ; auth_http_header 'Y' \"a b\";",
    SERVER % "set_real_ip_from 10.1.2.3/8; set_real_ip_from unix:; set_real_ip_from 2001:db8::/32;",
    SERVER % "ssl_verify_client on; ssl_certificate nowhere.pem; ssl_session_cache builtin:100 shared:a:1m;",
    SERVER % f"{_TLS} ssl_crl nowhere; ssl_client_certificate nowhere; ssl_trusted_certificate nowhere;",
    SERVER % "proxy on; proxy_protocol on; proxy_buffer 8k; proxy_timeout 1d12h; error_log /dev/null info;",
    SERVER % "protocol pop3; protocol smtp;",
    SERVER % f"starttls only; {_PAIR} ssl_protocols TLSv1.2 TLSv1.3; ssl_verify_depth 3;",
    SERVER % f"{_TLS} ssl_certificate_key '@server_key@';",
    MAIL % "server_name a; timeout 5s; # timeout x;\n",
    MAIL % "server { listen [::1]:10143 ipv6only=on; protocol smtp; }",
    LISTEN
    % f"127.0.0.1:10143 ssl proxy_protocol backlog=5 rcvbuf=8k sndbuf=1m so_keepalive=30m::10; {_PAIR[:-1]}",
    LISTEN % "localhost:10143",
    LISTEN % "*:10143 bind backlog=1 backlog=2",
    LISTEN % "10143-10145",
    "worker_processes auto; " + LISTEN % "127.0.0.1:10143",
    "worker_shutdown_timeout 10s; " + LISTEN % "127.0.0.1:10143",
    "mail { auth_http 127.0.0.1; server { listen 127.0.0.1:10993; protocol imap; timeout 1m30; } }",
)

# What nginx accepts and the proxy rejects, with the directive in its error; docs/quirks.md has the reasons.
PROXY_ONLY: Final = (
    ("listen", LISTEN % "127.0.0.1"),
    ("listen", LISTEN % "127...1:10143"),
    ("proxy_buffer", SERVER % "proxy_buffer 127;"),
    ("timeout", SERVER % "timeout m5;"),
    ("worker_processes", "worker_processes 0; " + LISTEN % "127.0.0.1:10143"),
    ("server_name", SERVER % "server_name 'a b';"),
    ("imap_capabilities", SERVER % 'imap_capabilities "a\\nb";'),
    ("auth_http_header", SERVER % 'auth_http_header X "a\\nb";'),
    ("ssl_session_cache", SERVER % "ssl_session_cache off builtin;"),
    ("ssl_verify_depth", SERVER % "ssl_verify_depth 99999999999;"),
    ("ssl_protocols", SERVER % f"{_TLS} ssl_protocols SSLv2;"),
    (
        "key",
        SERVER % "starttls on; ssl_certificate '@server_cert@'; ssl_certificate_key '@client_key@';",
    ),
)

_REPEATABLE: Final = frozenset({"auth_http", "protocol", "error_log", "ssl_session_cache"})
_SERVERS_ALONE: Final = frozenset(row.name for row in SERVER_DIRECTIVES)
_AROUND: Final = frozenset(row.name for row in MAIN_DIRECTIVES)


def may_repeat(row: Directive) -> bool:
    """Return whether a directive may occur twice on one level."""
    return row.type.appends or row.name in _REPEATABLE


def _placed(name: str, lines: str) -> str:
    """Return a configuration with lines of a directive where it is allowed."""
    if name == "worker_connections":
        return f"events {{ {lines} }} " + LISTEN % "127.0.0.1:10143"
    return f"{lines} {LISTEN % '127.0.0.1:10143'}" if name in _AROUND - {"error_log"} else SERVER % lines


def _misplaced(name: str, line: str) -> str:
    """Return a configuration with a directive where it is not allowed."""
    if name in _SERVERS_ALONE:
        return MAIL % line
    if name == "error_log":
        return f"events {{ {line} }} " + LISTEN % "127.0.0.1:10143"
    if name in _AROUND:
        return SERVER % line
    return f"{line} {LISTEN % '127.0.0.1:10143'}"


def generated() -> Iterator[tuple[str, str, str]]:
    """Yield the directive that must be reported, what is wrong with it, and the whole text."""
    for name, row in ROWS.items():
        value, most = VALID[name], row.type.arity[1]
        yield name, "nothing", _placed(name, f"{name};")
        if most is not None:
            yield name, "too much", _placed(name, f"{name} {value} {'x ' * most};")
        if not may_repeat(row):
            yield name, "twice", _placed(name, f"{name} {value}; {name} {value};")
        yield name, "where it may not stand", _misplaced(name, f"{name} {value};")
        yield name, "as a block", _placed(name, f"{name} {value} {{ }}")
    for name, values in INVALID.items():
        for value in values:
            yield name, value, SERVER % f"{name} {value};"


def repeated() -> Iterator[tuple[str, str]]:
    """Yield a directive that may occur twice, and a text in which it does."""
    for name, row in ROWS.items():
        if may_repeat(row) and name != "listen":
            yield name, _placed(name, f"{name} {VALID[name]}; {name} {VALID[name]};")
