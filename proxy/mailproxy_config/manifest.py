# SPDX-License-Identifier: Apache-2.0
"""The ``MailProxy`` resource: its schema, and the typed value that is read from it.

Directives stay in their levels; ``compile`` applies inheritance.  All errors are
reported together: unknown fields, invalid values, and invalid combinations.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from mailproxy_config import kubernetes_ports, upstream_blocks, upstream_service
from mailproxy_config.cross_checks import SPEC_RULES, check_consistency
from mailproxy_config.directives import (
    DIRECTIVES,
    IGNORED,
    LEVEL_DIRECTIVES,
    MAIN_DIRECTIVES,
    SERVER_DIRECTIVES,
    Directive,
    Level,
    ServerBlock,
    by_field,
    by_name,
)
from mailproxy_config.errors import Problem, Problems
from mailproxy_config.hints import advice_for_field, capability_hints
from mailproxy_config.kubernetes import DeploymentSpec, read_deployment
from mailproxy_config.kubernetes_schema import DEPLOYMENT_FIELDS, DEPLOYMENT_MEANINGS
from mailproxy_config.model import ProxyConfig
from mailproxy_config.presets import PRESETS, with_presets
from mailproxy_config.route_checks import check_routes
from mailproxy_config.schema import (
    Array,
    Object,
    Rule,
    Schema,
    String,
    closest_match,
    join_path,
    matches,
    type_of,
)
from mailproxy_config.upstream_blocks import UpstreamGroupRef
from mailproxy_config.value_types import INVALID_ITEM, ErrorPath, describe


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """Metadata of a resource.  ``generation`` is 0 if it did not come from an API server."""

    name: str = ""
    namespace: str = "default"
    generation: int = 0
    uid: str = ""


GROUP: Final = "mailproxy.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"
KIND: Final = "MailProxy"
MAX_SERVERS: Final = 32
_ON_TOP: Final = frozenset({"apiVersion", "kind", "metadata", "spec", "status"})
_KEPT_WHOLE: Final = frozenset({"pod", "networkPolicy", "autoscaling"})


def _rows(rows: Sequence[Directive]) -> dict[str, Schema]:
    return {row.field: row.type.schema for row in rows}


def _descriptions(rows: Sequence[Directive]) -> dict[str, str]:
    return {row.field: describe(row.name, row.meaning, row.default, is_ours=row.is_ours) for row in rows}


MAIL: Final = Object(
    fields={**_rows(LEVEL_DIRECTIVES), upstream_service.FIELD: upstream_service.SERVICE_REF},
    descriptions={**_descriptions(LEVEL_DIRECTIVES), upstream_service.FIELD: upstream_service.MEANING},
    advice=advice_for_field,
)
"""``spec.mail``: every directive allowed in ``mail {}``, and what only resources have."""


SERVER_NAME: Final = String(
    max_length=63,
    pattern="^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
    hint="lower-case letters, digits and hyphens, with a letter or digit at both ends",
)


PROTOCOL_RULE: Final = Rule(
    expression=(
        "has(self.protocol) || has(self.preset) || "
        "self.listen.all(l, has(l.port) && l.port in [143, 993]) || "
        "self.listen.all(l, has(l.port) && l.port in [110, 995]) || "
        "self.listen.all(l, has(l.port) && l.port in [25, 465, 587])"
    ),
    message=(
        "protocol is required unless all ports are well-known ports of the same protocol: "
        "143 993 imap, 110 995 pop3, 25 465 587 smtp"
    ),
    reason="FieldValueRequired",
    field_path=".protocol",
    predicate=None,
)


SERVER: Final = Object(
    fields={
        "name": SERVER_NAME,
        "preset": String(max_length=16, enum=tuple(PRESETS)),
        **_rows(SERVER_DIRECTIVES),
        **MAIL.fields,
    },
    required=("name", "listen"),
    rules=(PROTOCOL_RULE,),
    advice=advice_for_field,
    descriptions={
        "name": "Name of this server in metrics, logs and the status.",
        "preset": (
            "Fields of a usual SMTP server, which it need not have itself: Mx (no logins, for port 25), "
            "Submission (STARTTLS and login required, for port 587) or Submissions (login, for port 465)."
        ),
        **_descriptions(SERVER_DIRECTIVES),
        **MAIL.descriptions,
    },
)
"""An item of ``spec.servers``: every directive allowed in ``server {}``, and a name."""


SPEC: Final = Object(
    fields={
        **_rows(MAIN_DIRECTIVES),
        "mail": MAIL,
        "servers": Array(items=SERVER, max_items=MAX_SERVERS, min_items=1, keys=("name",)),
        upstream_blocks.FIELD: upstream_blocks.UPSTREAMS,
        **DEPLOYMENT_FIELDS,
    },
    required=("servers",),
    rules=SPEC_RULES,
    descriptions={
        **_descriptions(MAIN_DIRECTIVES),
        "mail": (
            "Directives for all servers, as in nginx's mail {} block. A server can override each of them."
        ),
        "servers": "Servers, as nginx's server {} blocks.",
        upstream_blocks.FIELD: upstream_blocks.MEANING,
        **DEPLOYMENT_MEANINGS,
    },
)
"""The whole ``spec``."""


NAME_RULES: Final = (
    Rule(
        expression="size(self.metadata.name) <= 50",
        message="metadata.name must be no longer than 50 characters",
        predicate=lambda metadata: len(metadata["name"]) <= 50,
    ),
    Rule(
        expression="self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        message=(
            "metadata.name must start with a letter and contain only lower-case letters, "
            "digits and hyphens: a Service is named after it"
        ),
        predicate=lambda metadata: matches("^[a-z]([-a-z0-9]*[a-z0-9])?$", metadata["name"]),
    ),
)
"""Rules of the resource itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MailProxyManifest:
    """A valid ``MailProxy`` resource.

    Attributes:
        metadata: Name, namespace, generation and UID.
        main: ``workers``, ``workerConnections`` and ``errorLog``.
        mail: The mail level.
        servers: The servers, in the order of the manifest.
        upstreams: The groups of upstreams that routes lead to.
        deployment: How it is deployed on Kubernetes.
        notices: Values that are accepted but probably not intended.
        raw: The resource as it was given, without null fields.
    """

    metadata: Metadata
    main: Level
    mail: Level
    servers: tuple[ServerBlock, ...]
    upstreams: tuple[UpstreamGroupRef, ...] = ()
    deployment: DeploymentSpec
    notices: tuple[Problem, ...]
    raw: Mapping[str, Any]


def parse_manifest(body: Mapping[str, Any]) -> MailProxyManifest:
    """Read a resource that is already a mapping, for example from the API server.

    Raises:
        ConfigError: With all errors.
    """
    problems = Problems()
    manifest = read_manifest(body, problems)
    problems.raise_if_any(partial=manifest)
    assert manifest is not None  # noqa: S101 -- else there was a problem
    return manifest


def read_manifest(body: Mapping[str, Any], problems: Problems) -> MailProxyManifest | None:
    """Read a resource as far as possible, and collect all errors.

    The result is valid only if there were no errors.  It is ``None`` if there is no ``spec``.
    """
    for name in body:
        if name not in _ON_TOP:
            meant = closest_match(str(name), _ON_TOP)
            problems.add(
                str(name)[:64], f"unknown field; did you mean {meant}?" if meant else "unknown field"
            )
    for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND)):
        if body.get(name) != wanted:
            problems.add(name, f"must be {wanted}")
    metadata = _metadata(body.get("metadata"), problems)
    spec = body.get("spec")
    if not isinstance(spec, Mapping):
        problems.add("spec", "is required" if spec is None else f"must be an object, not {type_of(spec)}")
        return None
    return _examined(body, metadata, with_presets(_without_nulls(spec)), problems)


def _examined(
    body: Mapping[str, Any], metadata: Metadata, spec: Mapping[str, Any], problems: Problems
) -> MailProxyManifest:
    valid = _valid_fields(SPEC, spec, "spec", problems, apart=frozenset({"mail", "servers"}))
    path = ErrorPath("spec", problems)
    main = _level(valid, valid, MAIN_DIRECTIVES, path, SPEC)
    workload = replace(
        read_deployment(valid, path), host_ports=kubernetes_ports.host_ports(spec.get("servers"))
    )
    written = spec.get("mail", {})
    valid_mail = _valid_fields(MAIL, written, "spec.mail", problems)
    mail = _level(valid_mail, written, LEVEL_DIRECTIVES, path.field("mail"), MAIL)
    servers = _servers(spec.get("servers"), path.field("servers"))
    upstreams = upstream_blocks.read_groups(
        valid.get(upstream_blocks.FIELD, ()), path.field(upstream_blocks.FIELD)
    )
    check_consistency(valid, mail, servers, problems)
    if (upstream_blocks.FIELD in spec) == (upstream_blocks.FIELD in valid):
        check_routes(mail, servers, upstreams, problems)
    kubernetes_ports.check(spec, problems)
    return MailProxyManifest(
        metadata=metadata,
        main=main,
        mail=mail,
        servers=servers,
        upstreams=upstreams,
        deployment=workload,
        notices=tuple(dict.fromkeys(problems.notices)),
        raw={**body, "spec": spec},
    )


def _metadata(value: object, problems: Problems) -> Metadata:
    """Name, namespace, generation and UID; the API server validates the other metadata."""
    if not isinstance(value, Mapping) or not isinstance(value.get("name"), str):
        problems.add("metadata.name", "is required, as text")
        return Metadata()
    for rule in NAME_RULES:
        if rule.predicate is not None and not rule.predicate(value):
            problems.add("metadata.name", rule.message.removeprefix("metadata.name "))
    generation = value.get("generation")
    return Metadata(
        name=value["name"],
        namespace=str(value.get("namespace") or "default"),
        generation=generation if isinstance(generation, int) else 0,
        uid=str(value.get("uid") or ""),
    )


def _servers(value: object, path: ErrorPath) -> tuple[ServerBlock, ...]:
    """All servers that are objects, with their index in the manifest."""
    if value is None:
        path.problems.add(path.text, "is required")
        return ()
    if not isinstance(value, Sequence) or isinstance(value, str):
        path.problems.add(path.text, f"must be a list, not {type_of(value)}")
        return ()
    if not 1 <= len(value) <= MAX_SERVERS:
        reason = f"has {len(value)} items, which is out of range 1 to {MAX_SERVERS}"
        path.problems.add(path.text, reason)
    found = [_server(item, path.item(index)) for index, item in enumerate(value[:MAX_SERVERS])]
    return tuple(server for server in found if server is not None)


def _server(value: object, path: ErrorPath) -> ServerBlock | None:
    valid = _valid_fields(SERVER, value, path.text, path.problems)
    if not isinstance(value, Mapping):
        return None
    own = _level(valid, value, SERVER_DIRECTIVES, path, SERVER)
    return ServerBlock(
        name=str(valid.get("name", "")),
        path=path.text,
        own=own,
        level=_level(valid, value, LEVEL_DIRECTIVES, path, SERVER),
    )


def _level(
    valid: Mapping[str, Any], raw: object, rows: Sequence[Directive], path: ErrorPath, record: Object
) -> Level:
    """Read the directives of one level.

    Args:
        valid: The fields that match their schema.
        raw: The object as written.
        rows: The directives of the level.
        path: The path of the level.
        record: The schema of the object.
    """
    values: dict[str, object] = {}
    known = by_field(rows)
    written = raw if isinstance(raw, Mapping) else {}
    given = [field for field in written if field in known]
    for field in given:
        row, here, before = known[field], path.field(field), len(path.problems)
        if field not in valid:
            _read_valid_items(row, written[field], here)
            continue
        value = here.try_read(lambda row=row, field=field, here=here: row.type.read(valid[field], here))  # type: ignore[misc]
        if len(path.problems) == before:
            values[row.name] = value
            for index, hint in capability_hints(row.name, value):
                here.problems.notice(here.text if index is None else here.item(index).text, hint)
        if field in IGNORED:
            path.problems.notice(here.text, IGNORED[field])
    meant = record.meant(written).values()
    return Level(
        values=values, given=frozenset(known[field].name for field in (*given, *meant) if field in known)
    )


def _read_valid_items(row: Directive, value: object, here: ErrorPath) -> None:
    """Read the valid items of a list with invalid ones, to find further errors."""
    schema = row.type.schema
    if not row.type.itemwise or not isinstance(schema, Array) or not isinstance(value, list):
        return
    items = [item if _is_valid(schema.items, item) else INVALID_ITEM for item in value[: schema.max_items]]
    here.try_read(lambda: row.type.read(items, here))


def _is_valid(schema: Schema, value: object) -> bool:
    found = Problems()
    schema.check(value, "", found)
    return not found


def _valid_fields(
    record: Object, value: object, path: str, problems: Problems, apart: frozenset[str] = frozenset()
) -> dict[str, Any]:
    """Return the fields of an object that match their schema, and report the others.

    Args:
        record: Schema of the object; its rules are checked by ``check_consistency``.
        value: The object.
        path: Its path.
        problems: Collects the errors.
        apart: Fields that are checked elsewhere.
    """
    if not isinstance(value, Mapping):
        problems.add(path, f"must be an object with fields, not {type_of(value)}")
        return {}
    valid = {}
    for name, inner in value.items():
        if name in apart:
            continue
        before = len(problems)
        Object(fields=record.fields, advice=record.advice).check({name: inner}, path, problems)
        if len(problems) == before:
            valid[name] = inner
    for name in record.missing(value):
        if name not in apart:
            problems.add(join_path(path, name), "is required")
    return valid


def _without_nulls(value: Any, depth: int = 0) -> Any:  # noqa: ANN401 -- any YAML value
    """The value without null fields, as the API server stores it."""
    if isinstance(value, Mapping):
        return {
            name: inner if depth == 0 and name in _KEPT_WHOLE else _without_nulls(inner, depth + 1)
            for name, inner in value.items()
            if inner is not None
        }
    return [_without_nulls(item, depth + 1) for item in value] if isinstance(value, list) else value


_OF_SERVER: Final = re.compile(r"servers\[([^]]+)\]\.([a-z_0-9]+)((\[[0-9]+\])?(\.[a-z_]+)?)")
_ROWS: Final = by_name(DIRECTIVES)


@dataclass(frozen=True, slots=True)
class ManifestSourceMap:
    """Maps problems of the compiled configuration to fields of the manifest.

    Certificates and other files are read after the configuration is compiled; their problems
    name a server and a directive.
    """

    manifest: MailProxyManifest

    def with_error_logs(self, config: ProxyConfig) -> ProxyConfig:
        """The configuration unchanged: a manifest has no log files."""
        return config

    def located(self, problem: Problem) -> Problem:
        """Map a problem of ``servers[NAME].directive`` to its field; an index may replace the name."""
        found = _OF_SERVER.fullmatch(problem.path)
        server = self._server(found[1]) if found else None
        if found is None or server is None or found[2] not in _ROWS:
            return problem
        row = _ROWS[found[2]]
        name = row.part_of or row.name
        is_inherited = name not in server.level.given | server.own.given and name in self.manifest.mail.given
        level = "spec.mail" if is_inherited else server.path
        return Problem(f"{level}.{_ROWS[name].field}{found[3]}", problem.reason)

    def _server(self, which: str) -> ServerBlock | None:
        servers = self.manifest.servers
        named = next((server for server in servers if server.name == which), None)
        if named is None and which.isdecimal() and int(which) < len(servers):
            return servers[int(which)]
        return named
