# SPDX-License-Identifier: Apache-2.0
"""Fixed colours of series, by the values of labels: successes are green, failures are red or orange.

The names are those of Grafana's palette. A series has the same colour in every panel.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

Colours = Mapping[str, str]

SUCCESS: Final = "green"
FAILURE: Final = "red"
NEUTRAL: Final = "#8e8e8e"
_WARM: Final = (
    "red", "orange", "dark-red", "light-orange", "light-red", "dark-orange",
    "dark-yellow", "purple", "light-purple", "super-light-red", "super-light-orange",
)  # fmt: skip
_COOL: Final = (
    "blue", "purple", "yellow", "light-blue", "dark-purple", "dark-blue", "light-purple",
    "super-light-blue", "light-yellow",
)  # fmt: skip


def _series(palette: tuple[str, ...], names: tuple[str, ...]) -> dict[str, str]:
    return dict(zip(names, palette, strict=False))


def _failures(*names: str) -> dict[str, str]:
    """Return a red or orange colour for each name."""
    return _series(_WARM, names)


def _kinds(*names: str) -> dict[str, str]:
    """Return a colour for each name that means neither success nor failure."""
    return _series(_COOL, names)


PROTOCOLS: Final[Colours] = MappingProxyType(_kinds("imap", "pop3", "smtp"))
LOGIN_RESULTS: Final[Colours] = MappingProxyType(
    {
        "success": SUCCESS,
        "denied": "orange",
        "upstream_denied": "light-orange",
        "temporary": "yellow",
        "limit_conn": "blue",
        "limit_req": "light-blue",
        "unavailable": FAILURE,
        "timeout": "dark-red",
        "invalid_response": "semi-dark-red",
        "upstream_failed": "light-red",
        "upstream_refused": "super-light-red",
        "tls_required": "purple",
        "method_disabled": "light-purple",
        "bad_credentials_syntax": "dark-purple",
        "aborted": NEUTRAL,
    }
)
METHODS: Final[Colours] = MappingProxyType(
    _kinds("password", "plain", "login", "cram_md5", "apop", "external", "none", "xoauth2", "oauthbearer")
)
SESSION_STATES: Final[Colours] = MappingProxyType(
    {
        "starting": NEUTRAL,
        "preauth": "light-blue",
        "auth": "orange",
        "upstream": "yellow",
        "relay": SUCCESS,
    }
)
CLOSE_REASONS: Final[Colours] = MappingProxyType(
    {
        "client_quit": SUCCESS,
        "client_closed": "light-green",
        "upstream_closed": "dark-green",
        "idle_timeout": "blue",
        "drain": "light-blue",
        "preauth_timeout": "dark-blue",
        "client_reset": NEUTRAL,
        "auth_rejected": "orange",
        "auth_unavailable": FAILURE,
        "upstream_error": "light-red",
        "internal_error": "dark-red",
        "tls_failed": "purple",
        "proxy_protocol_failed": "light-purple",
        "protocol_error": "light-orange",
        "max_errors": "dark-orange",
        "max_commands": "semi-dark-orange",
        "limit": "yellow",
    }
)
PENALTY_ACTIONS: Final[Colours] = MappingProxyType(
    {"delayed": "yellow", "refused": FAILURE, "known": SUCCESS, "exempt": "light-green"}
)
FAILED_CREDENTIALS: Final[Colours] = MappingProxyType({"new": "orange", "repeated": NEUTRAL})
AUTH_OUTCOMES: Final[Colours] = MappingProxyType(
    {"ok": SUCCESS, "denied": "orange", "wait": "yellow", "error": FAILURE, "timeout": "dark-red"}
)
AUTH_ERRORS: Final[Colours] = MappingProxyType(
    _failures("connect", "timeout", "http_5xx", "dns", "invalid_response", "no_server", "bad_address", "tls")
)
PASSWORD_FINDINGS: Final[Colours] = MappingProxyType(
    {
        "right": SUCCESS,
        "wrong": "orange",
        "unknown_user": "light-orange",
        "queue_full": FAILURE,
        "error": "dark-red",
    }
)
TOKEN_FINDINGS: Final[Colours] = MappingProxyType(
    {
        "valid": SUCCESS,
        "unavailable": FAILURE,
        "expired": "yellow",
        "not_yet_valid": "light-yellow",
        "signature": "orange",
        "unknown_key": "light-orange",
        "algorithm": "dark-orange",
        "malformed": "super-light-orange",
        "issuer": "blue",
        "audience": "light-blue",
        "type": "dark-blue",
        "client": "super-light-blue",
        "scope": "semi-dark-blue",
        "identity": "purple",
        "unverified": "light-purple",
        "domain": "dark-purple",
        "user": "super-light-purple",
    }
)
JWKS_RESULTS: Final[Colours] = MappingProxyType(
    {
        "ok": SUCCESS,
        **_failures("connect", "timeout", "tls", "status", "redirect", "invalid", "empty", "too_large"),
    }
)
AUTH_CACHE_EVENTS: Final[Colours] = MappingProxyType(
    {
        "hit": SUCCESS,
        "joined": "light-green",
        "miss": "blue",
        "stale": "orange",
        "stored": "light-blue",
        "evicted": "yellow",
    }
)
UPSTREAM_STAGES: Final[Colours] = MappingProxyType(
    _failures(
        "connect",
        "login",
        "greeting",
        "tls",
        "xclient",
        "hello",
        "envelope",
        "relay",
        "id",
        "token",
        "resolve",
    )
)
TOKEN_RESULTS: Final[Colours] = MappingProxyType(
    {
        "ok": SUCCESS,
        "refused": FAILURE,
        "unavailable": "dark-red",
        "timeout": "light-red",
        "invalid": "semi-dark-red",
    }
)
POLICY_RESULTS: Final[Colours] = MappingProxyType(
    {
        "ok": SUCCESS,
        "refused": "orange",
        "delayed": "yellow",
        "skipped": NEUTRAL,
        "unavailable": FAILURE,
        "timeout": "dark-red",
        "invalid": "semi-dark-red",
        "dropped": "light-red",
    }
)
UPSTREAM_TLS_FAILURES: Final[Colours] = MappingProxyType(
    _failures("expired", "name", "timeout", "verify", "refused", "stripped", "protocol", "injected")
)
UPSTREAM_TRIES: Final[Colours] = MappingProxyType(
    {
        "success": SUCCESS,
        "next": "orange",
        "final": "light-orange",
        "exhausted": FAILURE,
        "timeout": "dark-red",
        "abandoned": NEUTRAL,
    }
)
MEMBER_STATES: Final[Colours] = MappingProxyType({"Ready": SUCCESS, "Draining": "orange", "Gone": FAILURE})
GROUP_LOGINS: Final[Colours] = MappingProxyType(
    {"owner": SUCCESS, "fallback": "orange", "unavailable": FAILURE}
)
RESUMED: Final[Colours] = MappingProxyType({"resumed": "blue", "complete": "purple"})
DIRECTIONS: Final[Colours] = MappingProxyType({"to_client": "blue", "to_upstream": "purple"})
TLS_MODES: Final[Colours] = MappingProxyType({"implicit": "blue", "starttls": "purple"})
TLS_FAILURES: Final[Colours] = MappingProxyType(
    _failures(
        "other", "not_tls", "unsupported_version", "eof", "no_shared_cipher", "timeout",
        "alpn_mismatch", "bad_client_cert", "client_cert_missing", "verify_failed",
        "unrecognized_name",
    )
)  # fmt: skip
DNS_RESULTS: Final[Colours] = MappingProxyType(
    {
        "ok": SUCCESS,
        "nxdomain": "light-green",
        "servfail": FAILURE,
        "timeout": "dark-red",
        "refused": "orange",
        "invalid": "dark-orange",
    }
)
DNS_PURPOSES: Final[Colours] = MappingProxyType(_kinds("ptr", "forward", "auth", "upstream"))
DNS_TIMEOUTS: Final[Colours] = MappingProxyType(_failures("auth", "ptr", "forward", "upstream"))
PROTOCOL_ERRORS: Final[Colours] = MappingProxyType(
    {
        **_failures("no_greeting", "unexpected_reply", "reply_too_long"),
        "unknown_command": "blue",
        "bad_sequence": "light-blue",
        "bad_arguments": "dark-blue",
        "line_too_long": "purple",
        "literal_invalid": "light-purple",
        "base64_invalid": "dark-purple",
        "control_char": "super-light-blue",
        "early_talker": "yellow",
        "plaintext_before_tls": "light-yellow",
        "alpn_mismatch": "dark-yellow",
        "foreign_protocol": "super-light-purple",
        "proxy_header": "super-light-yellow",
        "other": NEUTRAL,
    }
)
PROXY_HEADERS: Final[Colours] = MappingProxyType(
    {
        "v1": SUCCESS,
        "v2": "dark-green",
        "local": "blue",
        "unknown": "light-blue",
        **_failures("missing", "untrusted", "invalid", "timeout"),
    }
)
ZONE_EVENTS: Final[Colours] = MappingProxyType(
    {
        "rejected": "orange",
        "delayed": "yellow",
        "dry_run": NEUTRAL,
        "zone_full": FAILURE,
        "skipped": "light-red",
    }
)
LIMITS: Final[Colours] = MappingProxyType(
    {
        "conn_total": FAILURE,
        "max_errors": "orange",
        "max_commands": "yellow",
        "blocked": "purple",
        "limit_conn": "blue",
        "limit_req": "light-blue",
        "limit_preauth": "dark-blue",
    }
)
QUANTILES: Final[Colours] = MappingProxyType({"median": "green", "90 %": "yellow", "99 %": "orange"})
RELOADS: Final[Colours] = MappingProxyType(
    {"success": SUCCESS, "failure": FAILURE, "pods with an old configuration": "orange"}
)
WORKERS: Final[Colours] = MappingProxyType(
    {
        "workers": SUCCESS,
        "draining pods": "blue",
        "restarts: requested": "light-blue",
        "restarts: crash": FAILURE,
        "restarts: killed": "dark-red",
        "restarts: unresponsive": "orange",
    }
)
RECONCILES: Final[Colours] = MappingProxyType(
    {"ok": SUCCESS, "retry": "yellow", "hopeless": "orange", "error": FAILURE}
)
READY: Final[Colours] = MappingProxyType({"true": SUCCESS, "false": FAILURE, "unknown": "yellow"})
CONFIG_ERRORS: Final[Colours] = MappingProxyType(
    _failures("invalid_spec", "listener_conflict", "forbidden", "name_conflict", "invalid_pod_fields")
)
VERBS: Final[Colours] = MappingProxyType(_kinds("get", "list", "apply", "patch", "create", "delete", "watch"))
STATUS_CODES: Final[Colours] = MappingProxyType(
    {
        "2xx": SUCCESS,
        **_failures("5xx", "429", "error", "409", "4xx", "422", "410"),
    }
)
WATCH_RESTARTS: Final[Colours] = MappingProxyType(
    {"expired": "blue", "closed": "light-blue", "error": FAILURE, "inactive": "orange"}
)
ADMISSIONS: Final[Colours] = MappingProxyType(
    {
        "injected": SUCCESS,
        "present": "light-green",
        "ignored": "yellow",
        "refused": "orange",
        "error": FAILURE,
    }
)
