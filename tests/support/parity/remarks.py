# SPDX-License-Identifier: Apache-2.0
"""Statements of the conformance page beyond the dialogues, and the tests or differences that show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

SAME: Final = "same as nginx"
BETTER: Final = "better"
EXTENSION: Final = "more than nginx"
CHOICE: Final = "a choice"


@dataclass(frozen=True)
class Remark:
    """A statement about a directive.

    Attributes:
        comparison: One of the constants above.
        text: The statement.
        evidence: Names of tests, or of declared differences.
    """

    comparison: str
    text: str
    evidence: tuple[str, ...]


IN_EVERY_CONFIG: Final = frozenset(
    {
        *("worker_processes", "worker_connections", "events", "mail", "server"),
        *("server_name", "auth_http", "listen", "protocol"),
    }
)
"""Directives that every configuration of the kit has."""

_ALONE: Final = "test_lines_accepted_by_nginx_only"
_ASCII: Final = Remark(BETTER, "values that would break a line are rejected", (_ALONE,))
_SMALL: Final = Remark(BETTER, "less than 128 bytes, which cannot work, are rejected", ("Q-01", _ALONE))

REMARKS: Final = {
    "worker_processes": Remark(
        BETTER,
        "`auto` counts the processors that the process may use; 0 is rejected",
        ("test_cpus_are_limited_by_affinity_and_quota", "test_errors_have_file_and_line"),
    ),
    "worker_connections": Remark(
        BETTER,
        "counts only clients; a client above the limit gets the busy reply of its protocol",
        ("test_clients_above_worker_connections_get_busy_reply_until_others_leave",),
    ),
    "worker_shutdown_timeout": Remark(
        CHOICE,
        "is `drain.timeout`; 0, no limit, gets a notice and is not converted",
        (
            "test_main_and_events_directives_are_converted",
            "test_directives_that_are_not_converted_get_notices",
        ),
    ),
    "error_log": Remark(
        CHOICE,
        "targets and levels as in nginx; another format of lines; a manifest has only standard error",
        (
            "test_logs_are_written_to_the_configured_files",
            "test_each_log_takes_events_from_its_level",
            "Q-09",
        ),
    ),
    "listen": Remark(
        BETTER,
        "a port is required; an address and a wildcard of the same port can both be opened",
        (
            "test_listen_accepted_by_nginx_only",
            "test_a_wildcard_and_an_address_of_its_port_can_both_listen",
        ),
    ),
    "server_name": _ASCII,
    "imap_capabilities": _ASCII,
    "pop3_capabilities": _ASCII,
    "smtp_capabilities": _ASCII,
    "auth_http_header": _ASCII,
    "imap_client_buffer": _SMALL,
    "smtp_client_buffer": _SMALL,
    "proxy_buffer": Remark(BETTER, "less than 128 bytes, which cannot work, are rejected", (_ALONE,)),
    "resolver": Remark(
        EXTENSION,
        "`status_zone=` is accepted; names of name servers are looked up when they are used",
        ("test_lines_accepted_by_mailproxy_only",),
    ),
    "auth_http": Remark(
        BETTER,
        "connections are reused, all addresses of a name are used, `https://` is accepted",
        (
            "test_one_connection_carries_many_requests",
            "test_addresses_are_used_in_turn",
            "test_https_service_needs_a_trusted_certificate",
            "Q-26",
        ),
    ),
    "proxy": Remark(SAME, "it has no effect", ("test_ignored_field_gets_a_notice",)),
    "proxy_timeout": Remark(BETTER, "counts both directions", ("Q-14",)),
    "set_real_ip_from": Remark(
        EXTENSION, "IPv6 addresses may have brackets", ("test_lines_accepted_by_mailproxy_only",)
    ),
    "starttls": Remark(BETTER, "`only` also applies to MAIL", ("Q-10",)),
    "ssl_certificate": Remark(
        CHOICE, "files and Secrets; not `data:`", ("test_certificates_without_files_are_errors",)
    ),
    "ssl_certificate_key": Remark(
        CHOICE,
        "files and Secrets; not `data:`, `engine:`, `store:`",
        ("test_certificates_without_files_are_errors",),
    ),
    "ssl_certificate_compression": Remark(
        SAME, "if OpenSSL supports it", ("test_unsupported_certificate_compression_is_a_notice",)
    ),
    "ssl_protocols": Remark(
        BETTER,
        "rejected if OpenSSL supports none of the versions; each version that it does not support gets a notice",
        ("test_no_supported_protocol_is_a_problem",),
    ),
    "ssl_session_cache": Remark(
        CHOICE,
        "each worker has its own cache; tickets work in all workers",
        ("test_cache_is_per_worker", "test_context_with_same_ticket_key_resumes"),
    ),
    "ssl_session_tickets": Remark(
        BETTER,
        "one per handshake, none if the client could not use it",
        ("test_number_of_tickets_sent",),
    ),
}

LISTEN_PARAMETERS: Final = (
    "ssl",
    "proxy_protocol",
    "bind",
    "backlog",
    "rcvbuf",
    "sndbuf",
    "ipv6only",
    "multipath",
    "so_keepalive",
)
"""The parameters of ``listen``."""

SERVICE_EXPECTATIONS: Final[dict[str, tuple[str, ...]]] = {
    "only control characters, space and `%` are escaped; bytes from 0x7F on are not": (
        "what is escaped",
        "plain bytes",
    ),
    "header names as nginx sends them, also of custom headers; values may be empty": (
        "custom headers, literally",
        "AUTH EXTERNAL accepted",
    ),
    "any status, any reason phrase or none": (
        "status 204 (imap)",
        "status 203 (imap)",
        "status 401 (imap)",
        "status 502 (imap)",
        "no reason phrase (imap)",
    ),
    "no status line at all": ("no status line (imap)",),
    "a body is ignored; no length is needed; the service closes": (
        "a body (imap)",
        "a body with its length (imap)",
        "a chunked body (imap)",
    ),
    "exactly `Auth-Status: OK`, or no Auth-Status, allows the login": (
        "no Auth-Status (imap)",
        "ok in small letters (imap)",
        "OK with a dot (imap)",
    ),
    "any other text is sent to the client unchanged": (
        "words with colons (imap)",
        "a response code (imap)",
        "words with 8 bits (imap)",
    ),
    "Auth-Wait missing, empty, 0 or not a number: the error, then close": (
        "two denials (pop3)",
        "Auth-Wait empty (pop3)",
        "Auth-Wait 0 (pop3)",
        "Auth-Wait no number (pop3)",
    ),
    "`Auth-Status: WAIT` repeats the request": ("LOGIN postponed, then accepted", "WAIT without Auth-Wait"),
    "Auth-User is used unchanged": ("another user, escaped (imap)", "another user with 8 bits (imap)"),
    "Auth-Pass replaces the password": ("another user (imap)", "APOP accepted", "AUTH CRAM-MD5 accepted"),
    "Auth-Error-Code is used only for SMTP": (
        "Auth-Error-Code (smtp)",
        "Auth-Error-Code of Mailu (imap)",
        "Auth-Error-Code of Mailu (smtp)",
    ),
    "unknown headers are ignored": ("unknown headers (imap)",),
    "a custom header `Auth-Port` in the request, and one with a shared secret": (
        "Mailu accepts (imap)",
        "Perl CGI misses its key (imap)",
        "custom headers, literally",
    ),
    "values of auth_http_header are literal: no variables": ("custom headers, literally",),
    "the complete MAIL and RCPT lines with method none": ("MAIL and RCPT accepted",),
    "an answer of more than 1024 bytes": ("an answer of more than 1024 bytes",),
}
"""The behaviour that existing services rely on, and the dialogues that show it."""

_BLOCKS_PER_CONFIG: Final = "mail { auth_http 127.0.0.1:9; server { listen 143; %s } }"
UNSUPPORTED: Final = (
    (
        "certificates and keys that are `data:`",
        "keys are in files and Secrets",
        _BLOCKS_PER_CONFIG % "ssl_certificate data:x; ssl_certificate_key data:y;",
    ),
    (
        "keys that are `engine:` or `store:`",
        "keys are in files and Secrets",
        _BLOCKS_PER_CONFIG % "ssl_certificate_key engine:x:y; ssl_certificate_key store:z;",
    ),
    (
        "`error_log memory:`",
        "only a debug build of nginx has it",
        f"error_log memory:32m debug; {_BLOCKS_PER_CONFIG % ''}",
    ),
    (
        "no limit to a drain",
        "a pod has a termination grace period",
        f"worker_shutdown_timeout 0; {_BLOCKS_PER_CONFIG % ''}",
    ),
    (
        "blocks of other modules, and settings of processes",
        "this is a mail proxy, and Kubernetes manages its processes",
        f"user www; http {{ }} stream {{ }} events {{ use epoll; }} {_BLOCKS_PER_CONFIG % ''}",
    ),
    (
        "more than 32 servers",
        "a limit of the custom resource",
        "mail { auth_http 127.0.0.1:9; "
        + " ".join(f"server {{ listen 127.0.0.{number}:143; }}" for number in range(1, 34))
        + " }",
    ),
    (
        "more than 16 `listen` in a server",
        "a limit of the custom resource",
        "mail { auth_http 127.0.0.1:9; server { protocol imap; "
        + " ".join(f"listen {number};" for number in range(2001, 2018))
        + " } }",
    ),
    (
        "ranges of more than 16 ports",
        "a limit of the custom resource",
        "mail { auth_http 127.0.0.1:9; server { listen 2000-2100; protocol imap; } }",
    ),
)
"""What nginx accepts and the proxy does not: what, why, and an ``nginx.conf`` that uses it."""
