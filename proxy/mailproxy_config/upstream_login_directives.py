# SPDX-License-Identifier: Apache-2.0
"""Directives about the login at upstreams: mechanisms, a master user, access tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from mailproxy_config.schema import Array, Object, Rule, String
from mailproxy_config.secret_refs import (
    ABSOLUTE_PATH,
    KEY_REF,
    FileRef,
    KeyRef,
    Mounts,
    ReferenceKind,
    format_key_ref,
    read_key_ref,
)
from mailproxy_config.upstream_login import (
    ProxyAuth,
    ProxyAuthToken,
    ProxyMasterUser,
    TokenGrant,
)
from mailproxy_config.value_types import (
    FLAG,
    Directive,
    ErrorPath,
    Inheritance,
    Raw,
    ValueType,
    control_character_rule,
)

_MODULE: Final = "mail_proxy"
_LOOPBACK: Final = re.compile(r"localhost|127(\.[0-9]{1,3}){3}|::1")
_LOOPBACK_URL: Final = r"^http://(localhost|127\\.[0-9.]+|\\[::1\\])(:[0-9]+)?(/.*)?$"


# --- secrets -------------------------------------------------------------------

_SECRET_SOURCES: Final = ("secretKeyRef", "file")
SECRET_SHAPE: Final = Object(
    example="{secretKeyRef: {name: NAME, key: KEY}} or {file: /PATH}",
    fields={
        "secretKeyRef": Object(
            fields=KEY_REF.fields,
            required=KEY_REF.required,
            descriptions={"name": "Name of the Secret.", "key": "Key in its data."},
        ),
        "file": ABSOLUTE_PATH,
    },
    descriptions={"secretKeyRef": "Key of a Secret.", "file": "Absolute path of a file."},
    rules=(
        Rule(
            expression="has(self.secretKeyRef) != has(self.file)",
            message="exactly one of secretKeyRef and file must be set",
            predicate=lambda value: sum(source in value for source in _SECRET_SOURCES) == 1,
        ),
    ),
)


def read_secret_source(value: Mapping[str, Any]) -> FileRef:
    """Convert a value of ``SECRET_SHAPE``."""
    if "secretKeyRef" in value:
        return read_key_ref(ReferenceKind.SECRET, value["secretKeyRef"])
    return str(value["file"])


def format_secret(value: FileRef) -> Raw:
    """The manifest value of a reference or file."""
    return {"file": value} if isinstance(value, str) else format_key_ref(value)


def parse_parameters(arguments: Sequence[str], known: Mapping[str, str]) -> dict[str, str]:
    """Read nginx's ``name=value`` parameters: fields of a manifest, and their values."""
    found: dict[str, str] = {}
    for word in arguments:
        name, equals, rest = word.partition("=")
        if not equals or name not in known or known[name] in found:
            raise ValueError(f"invalid parameter: {name[:64]}")
        found[known[name]] = rest
    return found


# --- proxyAuth -----------------------------------------------------------------

_WORDS: Final = {str(each).lower(): str(each) for each in ProxyAuth}


def _read_mechanisms(value: Sequence[str], _: ErrorPath) -> tuple[ProxyAuth, ...]:
    return tuple(map(ProxyAuth, value))


def _nginx_mechanisms(arguments: Sequence[str]) -> list[str]:
    for word in arguments:
        if word.lower() not in _WORDS:
            raise ValueError(f'invalid value "{word}", it must be one of {", ".join(_WORDS)}')
    return [_WORDS[word.lower()] for word in arguments]


MECHANISMS: Final = ValueType(
    syntax="list of " + ", ".join(map(str, ProxyAuth)),
    schema=Array(
        items=String(max_length=64, enum=tuple(map(str, ProxyAuth)), spellings=_WORDS),
        max_items=len(ProxyAuth),
        min_items=1,
        rules=(
            Rule(
                expression="self.all(x, self.exists_one(y, x == y))",
                message="each mechanism may be listed once",
                predicate=lambda value: len(set(value)) == len(value),
            ),
        ),
    ),
    read=_read_mechanisms,
    write=lambda value: list(map(str, value)),
    nginx=_nginx_mechanisms,
    arity=(1, None),
)


def map_files(value: Raw, change: Callable[[str], str]) -> Raw:
    """The same value with changed paths of files."""
    if not isinstance(value, dict):
        return value
    return {
        name: change(inner) if name in {"file", "directory"} else map_files(inner, change)
        for name, inner in value.items()
    }


# --- proxyMasterUser -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MasterUserRef:
    """``proxyMasterUser`` before references are replaced by paths."""

    user: str
    password: FileRef
    separator: str

    @property
    def references(self) -> tuple[KeyRef, ...]:
        """The Secrets that it refers to."""
        return (self.password,) if isinstance(self.password, KeyRef) else ()

    def with_paths(self, mounts: Mounts) -> ProxyMasterUser:
        """The value of the compiled configuration."""
        return ProxyMasterUser(
            user=self.user, password_file=mounts.path(self.password), separator=self.separator
        )


def _read_master(value: Mapping[str, Any], _: ErrorPath) -> MasterUserRef:
    return MasterUserRef(
        value["user"], read_secret_source(value["passwordFrom"]), value.get("separator", "*")
    )


def _format_master(value: MasterUserRef) -> Raw:
    written = {"user": value.user, "passwordFrom": format_secret(value.password)}
    return written | ({} if value.separator == "*" else {"separator": value.separator})


def _nginx_master(arguments: Sequence[str]) -> Raw:
    user, path = arguments[:2]
    return {"user": user, "passwordFrom": {"file": path}} | parse_parameters(
        arguments[2:], {"separator": "separator"}
    )


def master_user_ref(value: ProxyMasterUser) -> MasterUserRef:
    """The value of a manifest with these files."""
    return MasterUserRef(value.user, value.password_file, value.separator)


_MASTER_TEXT: Final = control_character_rule("the name of a master user")
MASTER_USER: Final = ValueType(
    syntax="{user, passwordFrom, separator}",
    schema=Object(
        example="{user: NAME, passwordFrom: {secretKeyRef: {name: NAME, key: KEY}}}",
        fields={
            "user": String(max_length=255, min_length=1, rules=(_MASTER_TEXT,)),
            "passwordFrom": SECRET_SHAPE,
            "separator": String(max_length=8, min_length=1, pattern="^[!-~]+$", hint="visible ASCII"),
        },
        required=("user", "passwordFrom"),
        descriptions={
            "user": "Name of the master user at the mail server.",
            "passwordFrom": "Source of its password.",
            "separator": (
                "Separates the name of the mailbox and the name of the master user in a login that has one "
                "name only. Default: *."
            ),
        },
    ),
    read=_read_master,
    write=_format_master,
    nginx=_nginx_master,
    arity=(2, 3),
)


# --- proxyAuthToken ------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class AuthTokenRef:
    """``proxyAuthToken`` before references are replaced by paths."""

    token_url: str
    client_id: str
    client_secret: FileRef | None
    scope: str
    grant: TokenGrant
    refresh_token: FileRef | None

    @property
    def references(self) -> tuple[KeyRef, ...]:
        """The Secrets that it refers to."""
        return tuple(each for each in (self.client_secret, self.refresh_token) if isinstance(each, KeyRef))

    def with_paths(self, mounts: Mounts) -> ProxyAuthToken:
        """The value of the compiled configuration."""
        secret, refresh = self.client_secret, self.refresh_token
        return ProxyAuthToken(
            token_url=self.token_url,
            client_id=self.client_id,
            client_secret_file=None if secret is None else mounts.path(secret),
            scope=self.scope,
            grant=self.grant,
            refresh_token_file=None if refresh is None else mounts.path(refresh),
        )


def _read_token(value: Mapping[str, Any], path: ErrorPath) -> AuthTokenRef:
    path.field("tokenUrl").try_read(lambda: check_token_url(value["tokenUrl"]))
    secret, refresh = value.get("clientSecretFrom"), value.get("refreshTokenFrom")
    return AuthTokenRef(
        token_url=value["tokenUrl"],
        client_id=value["clientId"],
        client_secret=None if secret is None else read_secret_source(secret),
        scope=value.get("scope", ""),
        grant=TokenGrant(value.get("grant", TokenGrant.CLIENT_CREDENTIALS)),
        refresh_token=None if refresh is None else read_secret_source(refresh),
    )


def check_token_url(url: str) -> None:
    """Check the URL of a token service.

    Raises:
        ValueError: It is no URL, it is not ``https``, or it has a user name or a fragment.
    """
    parts = urlsplit(url)
    if not parts.hostname or parts.username is not None or parts.fragment:
        raise ValueError("must be https://host[:port]/path, without a user name and a fragment")
    _ = parts.port  # raises ValueError
    is_loopback = parts.scheme == "http" and _LOOPBACK.fullmatch(parts.hostname)
    if parts.scheme != "https" and not is_loopback:
        raise ValueError("must begin with https://; http:// is allowed for a loopback address only")


def _format_token(value: AuthTokenRef) -> Raw:
    written: dict[str, Raw] = {"tokenUrl": value.token_url, "clientId": value.client_id}
    if value.client_secret is not None:
        written["clientSecretFrom"] = format_secret(value.client_secret)
    if value.scope:
        written["scope"] = value.scope
    if value.grant is not TokenGrant.CLIENT_CREDENTIALS:
        written["grant"] = str(value.grant)
    if value.refresh_token is not None:
        written["refreshTokenFrom"] = format_secret(value.refresh_token)
    return written


def auth_token_ref(value: ProxyAuthToken) -> AuthTokenRef:
    """The value of a manifest with these files."""
    return AuthTokenRef(
        token_url=value.token_url,
        client_id=value.client_id,
        client_secret=value.client_secret_file,
        scope=value.scope,
        grant=value.grant,
        refresh_token=value.refresh_token_file,
    )


_GRANTS: Final = {
    "client_credentials": str(TokenGrant.CLIENT_CREDENTIALS),
    "refresh_token": str(TokenGrant.REFRESH_TOKEN),
}
_TOKEN_PARAMETERS: Final = {
    "client_id": "clientId",
    "client_secret_file": "clientSecretFrom",
    "scope": "scope",
    "grant": "grant",
    "refresh_token_file": "refreshTokenFrom",
}


def _nginx_token(arguments: Sequence[str]) -> Raw:
    found: dict[str, Raw] = {"tokenUrl": arguments[0], **parse_parameters(arguments[1:], _TOKEN_PARAMETERS)}
    if "clientId" not in found:
        raise ValueError("client_id is required")
    if "grant" in found:
        if found["grant"] not in _GRANTS:
            raise ValueError(f"grant must be one of {', '.join(_GRANTS)}")
        found["grant"] = _GRANTS[found["grant"]]
    for name in ("clientSecretFrom", "refreshTokenFrom"):
        if name in found:
            found[name] = {"file": found[name]}
    return found


def _grant_is_complete(value: Mapping[str, Any]) -> bool:
    refreshes = value.get("grant") == TokenGrant.REFRESH_TOKEN
    return refreshes == ("refreshTokenFrom" in value) and (refreshes or "clientSecretFrom" in value)


AUTH_TOKEN: Final = ValueType(
    syntax="{tokenUrl, clientId, clientSecretFrom, scope, grant, refreshTokenFrom}",
    schema=Object(
        example="{tokenUrl: URL, clientId: ID, clientSecretFrom: {secretKeyRef: {name: NAME, key: KEY}}}",
        fields={
            "tokenUrl": String(
                max_length=1024,
                min_length=1,
                pattern="^https?://[!-~]+$",
                hint="https://host[:port]/path",
                rules=(
                    Rule(
                        expression=f"self.startsWith('https://') || self.matches('{_LOOPBACK_URL}')",
                        message="must begin with https://; http:// is allowed for a loopback address only",
                        predicate=None,
                    ),
                ),
            ),
            "clientId": String(
                max_length=255, min_length=1, rules=(control_character_rule("a client identifier"),)
            ),
            "clientSecretFrom": SECRET_SHAPE,
            "scope": String(max_length=1024, rules=(control_character_rule("a scope"),)),
            "grant": String(max_length=64, enum=tuple(map(str, TokenGrant)), spellings=_GRANTS),
            "refreshTokenFrom": SECRET_SHAPE,
        },
        required=("tokenUrl", "clientId"),
        descriptions={
            "tokenUrl": "URL of the token service: https, or http for a loopback address.",
            "clientId": "Identifier of the client at the token service.",
            "clientSecretFrom": "Source of the client's secret. Required for ClientCredentials.",
            "scope": "Scopes of the token, separated by spaces.",
            "grant": "ClientCredentials (one token for all mailboxes) or RefreshToken (of one mailbox).",
            "refreshTokenFrom": "Source of the refresh token. Required for RefreshToken.",
        },
        rules=(
            Rule(
                expression=(
                    "has(self.grant) && self.grant == 'RefreshToken' ? has(self.refreshTokenFrom) :"
                    " !has(self.refreshTokenFrom) && has(self.clientSecretFrom)"
                ),
                message=(
                    "grant RefreshToken needs refreshTokenFrom; ClientCredentials needs clientSecretFrom and "
                    "takes no refreshTokenFrom"
                ),
                predicate=_grant_is_complete,
            ),
        ),
    ),
    read=_read_token,
    write=_format_token,
    nginx=_nginx_token,
    arity=(2, 6),
)


UPSTREAM_LOGIN_DIRECTIVES: Final = (
    Directive(
        name="proxy_auth",
        module=_MODULE,
        type=MECHANISMS,
        default=["Native"],
        inheritance=Inheritance.LIST,
        is_ours=True,
        meaning=(
            "Ways to log in at mail servers; the first that the mail server offers is used. Native: as nginx."
        ),
    ),
    Directive(
        name="proxy_auth_require_tls",
        module=_MODULE,
        type=FLAG,
        is_ours=True,
        meaning=(
            "Sends passwords and tokens to mail servers inside of TLS only. Not set: true if proxySsl is not "
            "Disabled."
        ),
    ),
    Directive(
        name="proxy_master_user",
        module=_MODULE,
        type=MASTER_USER,
        is_ours=True,
        meaning="Logs in at mail servers with the password of a master user instead of the client's.",
    ),
    Directive(
        name="proxy_auth_token",
        module=_MODULE,
        type=AUTH_TOKEN,
        is_ours=True,
        meaning="Logs in at mail servers with an OAuth access token of this token service.",
    ),
)
"""Directives allowed in ``spec.mail`` and every server."""
