# SPDX-License-Identifier: Apache-2.0
"""Directives about the policy server, and about fingerprints of passwords in the log; nginx has none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final
from urllib.parse import urlsplit

from mailproxy_config import units
from mailproxy_config.policy_server import AuthPolicyServer, HashMech
from mailproxy_config.schema import Boolean, Integer, Object, String
from mailproxy_config.secret_refs import FileRef, KeyRef, Mounts
from mailproxy_config.upstream_login_directives import (
    SECRET_SHAPE,
    format_secret,
    parse_parameters,
    read_secret_source,
)
from mailproxy_config.value_types import FLAG, MSEC_SHAPE, Directive, ErrorPath, Raw, ValueType

MAX_TRUNCATE: Final = 256
"""Bits of a hash."""
MAX_TIMEOUT: Final = 15.0
"""Seconds."""
_MODULE: Final = "mail_auth_http"
_FLAGS: Final = {
    "checkBefore": "check_before",
    "checkAfter": "check_after",
    "report": "report",
    "rejectOnFail": "reject_on_fail",
}
_MECHS: Final = {str(each).lower(): str(each) for each in HashMech}
_UNSET: Final = AuthPolicyServer(url="", nonce_file="")
"""The values of fields that are not set."""


@dataclass(frozen=True, slots=True)
class PolicyServerRef:
    """``authPolicyServer`` before references are replaced by paths; the files of ``server`` are empty."""

    server: AuthPolicyServer
    nonce: FileRef
    header: FileRef | None

    @property
    def references(self) -> tuple[KeyRef, ...]:
        """The Secrets that it refers to."""
        return tuple(each for each in (self.nonce, self.header) if isinstance(each, KeyRef))

    def with_paths(self, mounts: Mounts) -> AuthPolicyServer:
        """The value of the compiled configuration."""
        header = None if self.header is None else mounts.path(self.header)
        return replace(self.server, nonce_file=mounts.path(self.nonce), header_file=header)


def policy_server_ref(value: AuthPolicyServer) -> PolicyServerRef:
    """The value of a manifest with these files."""
    return PolicyServerRef(
        replace(value, nonce_file="", header_file=None), value.nonce_file, value.header_file
    )


def _check_url(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.fragment:
        raise ValueError("must be http://host[:port]/path or an https:// URL, without a fragment")
    if parts.username is not None:
        raise ValueError("user and password are not accepted in the URL: set header")
    _ = parts.port  # raises ValueError


def _timeout(value: int | str) -> float:
    seconds = units.parse_msec_time(value)
    if not 0 < seconds <= MAX_TIMEOUT:
        raise ValueError(f"must be more than 0 and at most {MAX_TIMEOUT:g}s")
    return float(seconds)


def _read(value: Mapping[str, Any], path: ErrorPath) -> PolicyServerRef:
    path.field("url").try_read(lambda: _check_url(value["url"]))
    timeout = _UNSET.timeout
    if "timeout" in value:
        timeout = path.field("timeout").try_read(lambda: _timeout(value["timeout"]), timeout)
    header = value.get("header", {})
    server = AuthPolicyServer(
        url=value["url"],
        nonce_file="",
        header_name=header.get("name", ""),
        hash_mech=HashMech(value.get("hashMech", _UNSET.hash_mech)),
        hash_truncate=value.get("hashTruncate", _UNSET.hash_truncate),
        timeout=timeout,
        **{name: value[field] for field, name in _FLAGS.items() if field in value},
    )
    source = read_secret_source(header["valueFrom"]) if header else None
    return PolicyServerRef(server, read_secret_source(value["nonceFrom"]), source)


def _write(value: PolicyServerRef) -> Raw:
    server = value.server
    written: dict[str, Raw] = {"url": server.url, "nonceFrom": format_secret(value.nonce)}
    if value.header is not None:
        written["header"] = {"name": server.header_name, "valueFrom": format_secret(value.header)}
    if server.hash_mech is not _UNSET.hash_mech:
        written["hashMech"] = str(server.hash_mech)
    if server.hash_truncate != _UNSET.hash_truncate:
        written["hashTruncate"] = server.hash_truncate
    if server.timeout != _UNSET.timeout:
        written["timeout"] = units.format_time(server.timeout)
    written |= {
        field: getattr(server, name)
        for field, name in _FLAGS.items()
        if getattr(server, name) != getattr(_UNSET, name)
    }
    return written


_PARAMETERS: Final = {
    "nonce_file": "nonceFrom",
    "header_name": "headerName",
    "header_file": "headerFile",
    "hash_mech": "hashMech",
    "hash_truncate": "hashTruncate",
    "timeout": "timeout",
    **{name: field for field, name in _FLAGS.items()},
}


def _nginx(arguments: Sequence[str]) -> Raw:
    """``auth_policy_server URL nonce_file=FILE header_name=NAME header_file=FILE timeout=2s report=off``."""
    given = parse_parameters(arguments[1:], _PARAMETERS)
    found: dict[str, Raw] = {"url": arguments[0]}
    name, file = given.pop("headerName", None), given.pop("headerFile", None)
    if (name is None) != (file is None):
        raise ValueError("header_name and header_file are required together")
    if name is not None:
        found["header"] = {"name": name, "valueFrom": {"file": file}}
    if "nonceFrom" not in given:
        raise ValueError("nonce_file is required")
    return found | {field: _parameter(field, text) for field, text in given.items()}


def _parameter(field: str, text: str) -> Raw:
    if field == "nonceFrom":
        return {"file": text}
    if field in _FLAGS:
        if text not in {"on", "off"}:
            raise ValueError(f'invalid value "{text[:40]}", it must be "on" or "off"')
        return text == "on"
    if field == "hashTruncate":
        if not (text.isascii() and text.isdecimal()) or len(text) > 3:
            raise ValueError(f'invalid number "{text[:40]}"')
        return int(text)
    return _MECHS.get(text.lower(), text) if field == "hashMech" else text


POLICY_SERVER: Final = ValueType(
    syntax=(
        "{url, header, nonceFrom, hashMech, hashTruncate, timeout, checkBefore, checkAfter, report, "
        "rejectOnFail}"
    ),
    schema=Object(
        example="{url: URL, nonceFrom: {secretKeyRef: {name: NAME, key: KEY}}}",
        fields={
            "url": String(
                max_length=1024,
                min_length=1,
                pattern="^https?://[!-~]+$",
                hint="http://host[:port]/path or an https:// URL",
            ),
            "header": Object(
                fields={
                    "name": String(
                        max_length=127,
                        min_length=1,
                        pattern="^[!#$%&'*+.^_`|~0-9A-Za-z-]+$",
                        hint="the name of a header, without spaces and colons",
                    ),
                    "valueFrom": SECRET_SHAPE,
                },
                required=("name", "valueFrom"),
                descriptions={
                    "name": "Name of the header, such as X-API-Key or Authorization.",
                    "valueFrom": "Source of its value.",
                },
            ),
            "nonceFrom": SECRET_SHAPE,
            "hashMech": String(max_length=16, enum=tuple(map(str, HashMech)), spellings=_MECHS),
            "hashTruncate": Integer(maximum=MAX_TRUNCATE),
            "timeout": MSEC_SHAPE,
            "checkBefore": Boolean(),
            "checkAfter": Boolean(),
            "report": Boolean(),
            "rejectOnFail": Boolean(),
        },
        required=("url", "nonceFrom"),
        descriptions={
            "url": "URL of the policy server; ?command=allow or ?command=report is added.",
            "header": "A header of all requests, which authenticates the proxy.",
            "nonceFrom": "Source of a random text that is hashed with passwords; the same for all proxies.",
            "hashMech": "Hash of passwords. Default: Sha256.",
            "hashTruncate": "Bits of the hash that are sent; 0: all. Default: 12.",
            "timeout": "Time for a response, at most 15s. Default: 2s.",
            "checkBefore": "Asks before the authentication service decides. Default: true.",
            "checkAfter": "Asks after the authentication service has allowed a login. Default: true.",
            "report": "Reports the results of logins. Default: true.",
            "rejectOnFail": "Refuses logins temporarily while the server does not respond. Default: false.",
        },
    ),
    read=_read,
    write=_write,
    nginx=_nginx,
    arity=(2, 12),
)

POLICY_DIRECTIVES: Final = (
    Directive(
        name="auth_policy_server",
        module=_MODULE,
        type=POLICY_SERVER,
        is_ours=True,
        meaning="Policy server that may refuse or delay logins, with Dovecot's protocol (weakforced).",
    ),
    Directive(
        name="log_password_fingerprint",
        module="mail_core",
        type=FLAG,
        default=False,
        is_ours=True,
        meaning="Logs a keyed hash (pwfp) of refused passwords, with a key that each pod makes at random.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""
