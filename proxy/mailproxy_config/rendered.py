# SPDX-License-Identifier: Apache-2.0
"""The rendered configuration: canonical JSON that the operator writes and the proxy loads.

The format is closed: every field is present, and a format version identifies them.
Equal configurations have equal bytes.  ``parse_rendered`` takes types from the model, and
validates values with the table of directives as those of a manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from enum import StrEnum
from functools import partial
from types import NoneType, UnionType
from typing import Any, Final, TypeVar, Union, get_args, get_origin, get_type_hints

from mailproxy_config.cross_checks import lists_require_tls, require_tls_problems
from mailproxy_config.directives import (
    IGNORED,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
)
from mailproxy_config.errors import ConfigError, Problem, Problems
from mailproxy_config.manifest import MAX_SERVERS, SERVER_NAME
from mailproxy_config.model import (
    AuthHttpHeader,
    CertificateFiles,
    ListenConfig,
    Protocol,
    ProxyConfig,
    ServerConfig,
    VerifyClient,
)
from mailproxy_config.policy_directives import policy_server_ref
from mailproxy_config.policy_server import AuthPolicyServer
from mailproxy_config.route_checks import routing_problems
from mailproxy_config.route_directives import route_ref
from mailproxy_config.schema import is_encodable, join_path, type_of
from mailproxy_config.secret_refs import FILE, CertificateRef, HeaderRef, KeyRef, ReferenceKind
from mailproxy_config.shared_listeners import SHARED_SETTINGS, Block, check_shared_listeners, sni_names
from mailproxy_config.units import MAX_SECONDS
from mailproxy_config.upstream_blocks import (
    UPSTREAMS,
    UpstreamGroupRef,
    format_group,
    read_groups,
    service_of,
)
from mailproxy_config.upstream_groups import GroupFallback, Route, UpstreamGroup
from mailproxy_config.upstream_login import ProxyAuthToken, ProxyMasterUser
from mailproxy_config.upstream_login_directives import auth_token_ref, master_user_ref
from mailproxy_config.value_types import ErrorPath

FORMAT: Final = "mailproxy.dev/proxy-configuration"
FORMAT_VERSION: Final = 1


def dump(config: ProxyConfig, *, generation: int = 0) -> bytes:
    """Render a configuration.

    Args:
        config: The configuration.  An empty ``server_name`` stays empty.
        generation: Generation of the resource; not part of the hash.
    """
    document = {
        "format": FORMAT,
        "formatVersion": FORMAT_VERSION,
        "generation": generation,
        "config": _to_json(config),
    }
    return _canonical(document) + b"\n"


def config_hash(config: ProxyConfig) -> str:
    """SHA-256 of the configuration as ``dump`` renders it without the generation, in hexadecimal."""
    return hashlib.sha256(
        _canonical({"formatVersion": FORMAT_VERSION, "config": _to_json(config)})
    ).hexdigest()


def _canonical(document: object) -> bytes:
    """JSON with sorted names, fixed white space, ASCII only."""
    return json.dumps(document, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode()


def _to_json(value: Any) -> Any:  # noqa: ANN401 -- any value of a configuration
    """A value as JSON; sets are sorted, and whole floats are integers."""
    if is_dataclass(value):
        return {field.name: _to_json(getattr(value, field.name)) for field in fields(value)}
    match value:
        case StrEnum():
            return str(value)
        case frozenset():
            return sorted(map(str, value))
        case tuple():
            return [_to_json(item) for item in value]
        case float() if value.is_integer():
            return int(value)
    return value


T = TypeVar("T")
_LARGEST: Final = 1e15
_ENVELOPE: Final = ("format", "formatVersion", "generation", "config")
_SCALARS: Final[Mapping[type, str]] = {bool: "a boolean", int: "a whole number", str: "text"}


class _Unreadable(Exception):
    """The value has another type than the model; the error is already reported."""


def parse_rendered(document: object) -> tuple[ProxyConfig, int]:
    """Read a rendered configuration.

    Returns:
        The configuration, and the generation of its resource.

    Raises:
        ConfigError: With all differences from the format of ``dump``.
    """
    problems = Problems()
    if not isinstance(document, Mapping):
        raise ConfigError([Problem("", f"must be an object, not {type_of(document)}")])
    for name in document.keys() - set(_ENVELOPE):
        problems.add(name[:64], "unknown field")
    version = document.get("formatVersion")
    if document.get("format") != FORMAT:
        problems.add("format", f"must be {FORMAT}")
    if isinstance(version, bool) or version != FORMAT_VERSION:
        problems.add(
            "formatVersion", f"{str(version)[:20]} is not {FORMAT_VERSION}, the one this program reads"
        )
    problems.raise_if_any()
    generation = document.get("generation")
    if isinstance(generation, bool) or not isinstance(generation, int) or generation < 0:
        problems.add("generation", "must be a whole number")
    config = _read_config(document.get("config"), problems)
    problems.raise_if_any()
    assert config is not None and isinstance(generation, int)  # noqa: S101, PT018 -- else there was a problem
    return config, generation


def _read_config(value: object, problems: Problems) -> ProxyConfig | None:
    try:
        config = _dataclass(ProxyConfig, value, "config", problems)
    except _Unreadable:
        return None
    validate_rendered(config, problems)
    return config


def _types(kind: type, _known: dict[type, Mapping[str, Any]] = {}) -> Mapping[str, Any]:  # noqa: B006 -- kept
    """The resolved types of a dataclass's fields; cached."""
    if kind not in _known:
        _known[kind] = get_type_hints(kind)
    return _known[kind]


def _dataclass(kind: type[T], value: object, path: str, problems: Problems) -> T:
    """A dataclass of the model: no field missing, no field unknown."""
    if not isinstance(value, Mapping):
        raise _reported(path, f"must be an object, not {type_of(value)}", problems)
    types = _types(kind)
    before = len(problems)
    for name in value.keys() - types.keys():
        problems.add(join_path(path, name), "unknown field")
    found: dict[str, Any] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        here = join_path(path, field.name)
        if field.name not in value:
            problems.add(here, "is required")
            continue
        try:
            found[field.name] = _read(types[field.name], value[field.name], here, problems)
        except _Unreadable:
            continue
    if len(problems) > before:
        raise _Unreadable
    return kind(**found)


def _reported(path: str, reason: str, problems: Problems) -> _Unreadable:
    problems.add(path, reason)
    return _Unreadable()


def _read(kind: Any, value: object, path: str, problems: Problems) -> Any:  # noqa: ANN401 -- a type, and one of it
    """A value of any type in the model."""
    kind = getattr(kind, "__supertype__", kind)
    origin = get_origin(kind)
    if origin in {UnionType, Union}:
        inner = next(each for each in get_args(kind) if each is not NoneType)
        return None if value is None else _read(inner, value, path, problems)
    if origin is not None:
        return _READ_LIST[origin](kind, value, path, problems)
    if kind is float:
        return _float(value, path, problems)
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        return _word(kind, value, path, problems)
    if kind in _SCALARS:
        return _scalar(kind, value, path, problems)
    return _dataclass(kind, value, path, problems)


def _scalar(kind: type, value: object, path: str, problems: Problems) -> object:
    if type(value) is not kind:
        raise _reported(path, f"must be {_SCALARS[kind]}, not {type_of(value)}", problems)
    if isinstance(value, str) and not is_encodable(value):
        raise _reported(path, "is not valid Unicode text", problems)
    return value


def _float(value: object, path: str, problems: Problems) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise _reported(path, f"must be a number, not {type_of(value)}", problems)
    # 1e999 is valid JSON and infinity in Python; an integer can be too large for a float.
    if not -_LARGEST < value < _LARGEST:
        raise _reported(path, "is out of range", problems)
    return float(value)


def _word(kind: type[StrEnum], value: object, path: str, problems: Problems) -> StrEnum:
    if not isinstance(value, str) or value not in set(map(str, kind)):
        raise _reported(path, f"must be one of {', '.join(kind)}", problems)
    return kind(value)


def _items(value: object, path: str, problems: Problems) -> list[Any]:
    if not isinstance(value, list):
        raise _reported(path, f"must be a list, not {type_of(value)}", problems)
    return value


def _set(kind: Any, value: object, path: str, problems: Problems) -> frozenset[Any]:  # noqa: ANN401 -- a generic type
    items = _items(value, path, problems)
    (inner,) = get_args(kind)
    return frozenset(_read(inner, item, f"{path}[{index}]", problems) for index, item in enumerate(items))


def _tuple(kind: Any, value: object, path: str, problems: Problems) -> tuple[Any, ...]:  # noqa: ANN401 -- a generic type
    items = _items(value, path, problems)
    inner = get_args(kind)
    if inner[-1] is not Ellipsis and len(inner) != len(items):
        raise _reported(path, f"must have {len(inner)} items", problems)
    kinds = [inner[0]] * len(items) if inner[-1] is Ellipsis else inner
    found, before = [], len(problems)
    for index, (each, item) in enumerate(zip(kinds, items, strict=True)):
        try:
            found.append(_read(each, item, f"{path}[{index}]", problems))
        except _Unreadable:
            continue
    if len(problems) > before:
        raise _Unreadable
    return tuple(found)


_READ_LIST: Final[Mapping[object, Callable[[Any, object, str, Problems], Any]]] = {
    frozenset: _set,
    tuple: _tuple,
}


_MAIN_NAMES: Final = {"worker_processes": "workers"}
_STAND_IN: Final = KeyRef(ReferenceKind.SECRET, "any", "any")
"""The file of a header has any path; the schema of a header accepts only Secrets."""


def validate_rendered(config: ProxyConfig, problems: Problems) -> None:
    """Report every value that cannot be the result of compiling a manifest."""
    for row in MAIN_DIRECTIVES:
        name = _MAIN_NAMES.get(row.name, row.name)
        _check_value(row, getattr(config, name), f"config.{name}", problems)
    for name in ("delay", "timeout"):
        _check_time(getattr(config.drain, name), f"config.drain.{name}", problems)
    if not 1 <= len(config.servers) <= MAX_SERVERS:
        reason = f"has {len(config.servers)} items, which is out of range 1 to {MAX_SERVERS}"
        problems.add("config.servers", reason)
    for index, server in enumerate(config.servers[:MAX_SERVERS]):
        _check_server(server, f"config.servers[{index}]", problems)
    _check_duplicates(config, problems)


def _check_server(server: ServerConfig, path: str, problems: Problems) -> None:
    SERVER_NAME.check(server.name, f"{path}.name", problems)
    for row in LEVEL_DIRECTIVES + SERVER_DIRECTIVES:
        if row.field not in IGNORED:
            _check_value(row, getattr(server, row.name), f"{path}.{row.name}", problems)
    _check_groups(server.upstream_groups, f"{path}.upstream_groups", problems)
    groups = {group.name: dict(group.settings.directives) for group in server.upstream_groups}
    for where, reason in routing_problems(partial(getattr, server), server.protocol, groups):
        problems.add(f"{path}.{where}", reason)
    if server.auth_http is None and not server.auth_mode.needs_routes:
        problems.add(f"{path}.auth_http", "is required")
    _check_require_tls(server, f"{path}.smtp_capabilities", problems)
    if not server.tls_is_used:
        return
    if not server.ssl_certificate:
        problems.add(f"{path}.ssl_certificate", "is required for listen ssl and starttls")
    if server.ssl_verify_client in {VerifyClient.REQUIRED, VerifyClient.OPTIONAL} and not (
        server.ssl_client_certificate or server.ssl_trusted_certificate
    ):
        problems.add(f"{path}.ssl_verify_client", "needs ssl_client_certificate or ssl_trusted_certificate")


def _check_groups(groups: Sequence[UpstreamGroup], path: str, problems: Problems) -> None:
    """Convert groups of upstreams to their manifest values, and validate those."""
    wanted = tuple(
        UpstreamGroupRef(
            name=group.name,
            servers=() if group.members else group.servers,
            service=service_of(group.members) if group.members else None,
            hash=group.hash,
            settings=tuple((name, _with_references(value)) for name, value in group.settings.directives),
            fallback=group.members.fallback if group.members else GroupFallback.NONE,
        )
        for group in groups
    )
    written = [format_group(group) for group in wanted]
    before = len(problems)
    UPSTREAMS.check(written, path, problems)
    if len(problems) == before:
        read = read_groups(written, ErrorPath(path, problems))
        names = [each.service.server("") for each in read if each.service is not None]
        given = [server for group in groups if group.members is not None for server in group.servers]
        if len(problems) == before and (read != wanted or names != given):
            problems.add(path, "has contradictory values")


def _check_require_tls(server: ServerConfig, path: str, problems: Problems) -> None:
    if server.protocol is Protocol.SMTP and lists_require_tls(server.smtp_capabilities):
        for reason in require_tls_problems(
            listen=server.listen,
            starttls=server.starttls,
            proxy_ssl=server.proxy_ssl,
            verifies=server.proxy_ssl_verify,
        ):
            problems.add(path, reason)


def _check_value(row: Directive, value: Any, here: str, problems: Problems) -> None:  # noqa: ANN401 -- of any directive
    """Convert the value to its manifest value, and validate that."""
    if isinstance(value, float):
        _check_time(value, here, problems)
        return
    if value is None and (row.type is FILE or row.default is None):
        return
    wanted = _with_references(value)
    written = row.type.write(wanted)
    before = len(problems)
    row.type.schema.check(written, here, problems)
    if len(problems) == before:
        path = ErrorPath(here, problems)
        read = path.try_read(lambda: row.type.read(written, path))
        if len(problems) == before and _without_bind(read) != _without_bind(wanted):
            problems.add(here, "has contradictory values")


def _without_bind(value: Any) -> Any:  # noqa: ANN401 -- the value of any directive
    """The value without ``bind``, which other parameters of a listener imply."""
    if isinstance(value, tuple) and value and isinstance(value[0], ListenConfig):
        return tuple(replace(listener, bind=True) for listener in value)
    return value


def _check_time(seconds: float, path: str, problems: Problems) -> None:
    if not 0 <= seconds <= MAX_SECONDS:
        problems.add(path, f"{seconds:g} is out of range 0 to {MAX_SECONDS}")


_REFERENCE_OF: Final[Mapping[type, Callable[[Any], object]]] = {
    ProxyMasterUser: master_user_ref,
    ProxyAuthToken: auth_token_ref,
    AuthPolicyServer: policy_server_ref,
    Route: route_ref,
}


def _with_references(value: Any) -> Any:  # noqa: ANN401 -- the value of any directive
    """The value with references instead of paths."""
    match value:
        case AuthHttpHeader(value=None, value_file=str()):
            return HeaderRef(value.name, _STAND_IN)
        case CertificateFiles():
            return CertificateRef(value.certificate, value.key, value.server_names)
        case ProxyMasterUser() | ProxyAuthToken() | AuthPolicyServer() | Route():
            return _REFERENCE_OF[type(value)](value)
        case tuple():
            return tuple(map(_with_references, value))
    return value


def _check_duplicates(config: ProxyConfig, problems: Problems) -> None:
    names: set[str] = set()
    for index, server in enumerate(config.servers):
        if server.name in names:
            problems.add(f"config.servers[{index}].name", f"{server.name!r} is duplicate")
        names.add(server.name)
    check_shared_listeners(
        [_as_block(index, server) for index, server in enumerate(config.servers)], problems
    )


def _as_block(index: int, server: ServerConfig) -> Block:
    return Block(
        name=server.name,
        path=f"config.servers[{index}]",
        protocol=server.protocol,
        listen=server.listen,
        uses_tls=server.tls_is_used,
        names=sni_names(server.server_names, server.server_name),
        settings={name: getattr(server, name) for name in SHARED_SETTINGS},
    )
