# SPDX-License-Identifier: Apache-2.0
"""Hints for unknown directives and unusual capabilities.

The directives are those of nginx 0.5 to 1.31, its http and stream modules, and its forks
(freenginx, Angie, OpenResty, Zimbra's).  A name in angle brackets is a directive of the mail
modules; for a manifest it is replaced by the name of the field.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from mailproxy_config.value_types import lower_camel_case

_CONNECTING: Final = (
    "<timeout> limits connecting to the mail server and logging in there; "
    "<proxy_timeout> ends sessions that are silent for so long"
)

_SILENCE: Final = "<proxy_timeout> limits how long a session may be silent in both directions"
_WAITING: Final = "<timeout> limits the time before login, <proxy_timeout> the silence after it"
_UPSTREAM: Final = (
    "the authentication service names the mail server (Auth-Server and Auth-Port), see <auth_http>; "
    "or <route> leads to it, with <auth_mode>"
)

_BUFFER: Final = "<proxy_buffer> is the size of the buffer for what mail servers send"
_CLIENT_BUFFER: Final = "<imap_client_buffer> and <smtp_client_buffer> are the buffers for what clients send"
_HEADERS: Final = "<auth_http_header> adds a header to the requests to the authentication service"
_LOG: Final = "every session writes one line to the log; <error_log> sets its level"
_ACCESS: Final = "refuse clients in the authentication service, which gets their address as Client-IP"
_REAL_IP: Final = 'the address comes from the PROXY header: "listen … proxy_protocol" and <set_real_ip_from>'
_AUTH: Final = "the authentication service decides who may log in, see <auth_http>"
_SCRIPTS: Final = "mail {} runs no scripts; the authentication service decides, see <auth_http>"
_ELSEWHERE: Final = "it belongs to http {} and stream {}, not to mail {}"
_ZIMBRA: Final = (
    "Zimbra's nginx has it, and no other: leave it out; <auth_http> names the service that decides on logins"
)


SSL: Final = 'nginx removed it in 1.25.1: write "listen … ssl", such as "listen 993 ssl;"'
"""Hint for ``ssl on``."""

_SSL_FIELD: Final = "write {port: 993, ssl: true} in listen"


_NAMES: Final[Mapping[str, str]] = {
    **dict.fromkeys(("proxy_ctimeout", "connect_timeout"), _CONNECTING),
    **dict.fromkeys(("proxy_read_timeout", "proxy_send_timeout", "proxy_idle_timeout"), _SILENCE),
    **dict.fromkeys(
        (
            *("keepalive_timeout", "send_timeout", "client_header_timeout", "client_body_timeout"),
            *("client_timeout", "preread_timeout", "proxy_protocol_timeout", "ssl_handshake_timeout"),
            *("imap_timeout", "pop3_timeout", "smtp_timeout", "lingering_timeout"),
        ),
        _WAITING,
    ),
    **dict.fromkeys(
        ("proxy_pass", "upstream", "proxy_upstream", "proxy_server", "mail_server", "backend"), _UPSTREAM
    ),
    **dict.fromkeys(("proxy_buffers", "proxy_buffer_size", "proxy_busy_buffers_size"), _BUFFER),
    **dict.fromkeys(
        ("client_header_buffer_size", "large_client_header_buffers", "client_body_buffer_size"),
        _CLIENT_BUFFER,
    ),
    **dict.fromkeys(("proxy_set_header", "proxy_pass_header", "add_header"), _HEADERS),
    **dict.fromkeys(("access_log", "log_format"), _LOG),
    **dict.fromkeys(("allow", "deny", "geo", "satisfy"), _ACCESS),
    **dict.fromkeys(("real_ip_header", "real_ip_recursive"), _REAL_IP),
    **dict.fromkeys(("auth_request", "auth_request_set", "auth_basic", "auth_basic_user_file"), _AUTH),
    "auth": "<imap_auth>, <pop3_auth> and <smtp_auth> name the ways to log in",
    "imap": 'nginx has called this block "mail" since 0.5.15',
    "so_keepalive": 'write it as a parameter of listen: "listen … so_keepalive=on"',
    "ssl": SSL,
    "client_max_body_size": '<smtp_capabilities> announces the largest message, as in "SIZE 50000000"',
    "status_zone": "metrics are always counted, by the name of the server; see /metrics",
    **dict.fromkeys(
        (
            *(
                "root",
                "alias",
                "index",
                "location",
                "try_files",
                "error_page",
                "rewrite",
                "return",
                "if",
                "set",
            ),
            *("map", "map_hash_bucket_size", "map_hash_max_size", "split_clients", "sendfile", "tcp_nopush"),
            *("tcp_nodelay", "types", "default_type", "charset", "expires", "etag", "autoindex", "internal"),
            *("server_tokens", "server_names_hash_bucket_size", "server_names_hash_max_size", "http2"),
            *("types_hash_max_size", "reset_timedout_connection", "variables_hash_max_size", "keepalive"),
            *(
                "proxy_bind",
                "proxy_half_close",
                "proxy_requests",
                "proxy_responses",
                "proxy_socket_keepalive",
            ),
            *("proxy_download_rate", "proxy_upload_rate", "proxy_http_version", "proxy_redirect"),
            *("proxy_method", "proxy_hide_header", "ssl_preread", "ssl_buffer_size", "ssl_early_data"),
            *("ssl_reject_handshake", "ssl_alpn", "keepalive_requests", "least_conn", "ip_hash", "hash"),
        ),
        _ELSEWHERE,
    ),
    **dict.fromkeys(
        (
            *("imap_id", "imap_greeting", "pop3_greeting", "imap_literalauth", "pop3_xoip", "default_realm"),
            *("proxy_issue_imap_id", "proxy_issue_pop3_xoip", "user_login_limit", "throttle_whitelist_ips"),
            *("master_auth_username", "master_auth_password", "memcached_servers", "auth_wait_interval"),
        ),
        _ZIMBRA,
    ),
}


_PATTERNS: Final[tuple[tuple[re.Pattern[str], str], ...]] = (
    (re.compile(r"limit_(conn|req|rate)"), _ACCESS),
    (re.compile(r"(js|perl|lua|njs)_|.*_by_(lua|js)(_|\Z)"), _SCRIPTS),
    (re.compile(r"(zm|sasl|login_ip|xoip)_"), _ZIMBRA),
    (re.compile(r"ssl_(stapling|ocsp|ct|dyn_rec)"), _ELSEWHERE),
    (re.compile(r"proxy_(ssl|cache|cookie|store|temp|intercept|ignore)"), _ELSEWHERE),
    (re.compile(r"(gzip|brotli|fastcgi|uwsgi|scgi|grpc|http2|http3|quic|ssi|sub|dav|autoindex|open_file)(_|\Z)"),
     _ELSEWHERE),
    (re.compile(r"(geoip|memcached|acme|image_filter|charset|userid|random_index|health_check|zone)(_|\Z)"),
     _ELSEWHERE),
)  # fmt: skip

_OURS: Final = re.compile(r"<([a-z0-9_]+)>")
_UPPER: Final = re.compile(r"(?<=[a-z0-9])([A-Z])")


def advice_for_directive(name: str) -> str:
    """How to replace a directive that ``mail {}`` does not have; empty if unknown."""
    return _OURS.sub(r'"\1"', _advice(name))


def advice_for_field(name: str) -> str:
    """The same for a field of a manifest."""
    written = _UPPER.sub(r"_\1", name[:64]).lower()
    if written == "ssl":
        return _SSL_FIELD
    return _OURS.sub(lambda found: f'"{lower_camel_case(found[1])}"', _advice(written))


def _advice(name: str) -> str:
    if name in _NAMES:
        return _NAMES[name]
    return next((advice for pattern, advice in _PATTERNS if pattern.match(name)), "")


_CODE: Final = re.compile(r"[0-9]{3}[- ]\s*(.*)|\* CAPABILITY (.*)|\+OK\s*(.*)", re.IGNORECASE)
_SEVERAL: Final = frozenset(
    {
        *("8BITMIME", "BINARYMIME", "CHUNKING", "DSN", "ENHANCEDSTATUSCODES", "ETRN", "EXPN", "HELP"),
        *("PIPELINING", "SMTPUTF8", "VRFY", "TOP", "UIDL", "USER", "RESP-CODES", "AUTH-RESP-CODE"),
    }
)

_BY_HAND: Final[Mapping[str, Mapping[str, str]]] = {
    "smtp_capabilities": {
        "AUTH": 'the proxy writes the line AUTH itself, from "smtpAuth"',
        "STARTTLS": 'the proxy adds STARTTLS itself where "starttls" is on',
        "XCLIENT": "the proxy does not take XCLIENT from clients",
    },
    "pop3_capabilities": {
        "SASL": 'the proxy writes the line SASL itself, from "pop3Auth"',
        "STLS": 'the proxy adds STLS itself where "starttls" is on',
        "STARTTLS": 'POP3 calls it STLS, and the proxy adds it itself where "starttls" is on',
        "UTF8": "clients send UTF8 before they log in, and the proxy refuses it",
        "LANG": "clients send LANG before they log in, and the proxy refuses it",
    },
    "imap_capabilities": {
        "AUTH": 'the proxy adds AUTH= itself, from "imapAuth"',
        "STARTTLS": 'the proxy adds STARTTLS itself where "starttls" is on',
        "LOGINDISABLED": 'the proxy adds LOGINDISABLED itself where "starttls" is only',
        "ID": "clients send ID before they log in, and the proxy refuses it and counts an error",
    },
}


def capability_hints(directive: str, capabilities: Sequence[str]) -> Iterator[tuple[int | None, str]]:
    """Hints about capabilities that nginx accepts but clients understand differently.

    Args:
        directive: ``imap_capabilities``, ``pop3_capabilities`` or ``smtp_capabilities``; others have none.
        capabilities: The list.

    Yields:
        The index of a capability, or ``None`` for the whole list, and the hint.
    """
    by_hand = _BY_HAND.get(directive)
    if by_hand is None:
        return
    is_imap = directive == "imap_capabilities"
    for index, written in enumerate(capabilities):
        before = capabilities[index - 1] if index else ""
        hint = _hint(written, before, by_hand, is_imap=is_imap)
        if hint:
            yield index, f'"{written[:64]}": {hint}'
    words = " ".join(capabilities).upper().split()
    if is_imap and not {"IMAP4REV1", "IMAP4REV2"}.intersection(words):
        yield None, "names neither IMAP4rev1 nor IMAP4rev2; clients expect one of them"


def _hint(written: str, before: str, by_hand: Mapping[str, str], *, is_imap: bool) -> str:
    code = _CODE.fullmatch(written)
    if code is not None:
        bare = next(filter(None, code.groups()), "")
        name = bare.upper().split(" ")[0].partition("=")[0]
        return by_hand.get(name, f'write "{bare[:64]}" alone; the proxy writes what belongs before it')
    words = written.upper().split()
    if len(words) == 1 and words[0].isdigit():
        return (
            f'is a capability of its own; if it belongs to "{before[:64]}", put both into one pair of quotes'
            + (f': "{before[:64]} {written[:64]}"' if before else "")
        )
    if len(words) > 1 and not is_imap and _SEVERAL.issuperset(words):
        return "is one line; put each capability into quotes of its own"
    names = [word.partition("=")[0] for word in (words if is_imap else words[:1])]
    return next((by_hand[name] for name in names if name in by_hand), "")
