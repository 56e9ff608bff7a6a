# SPDX-License-Identifier: Apache-2.0
"""References to Secrets, ConfigMaps and files, and the paths where they are mounted.

Values of Secrets are never part of the configuration, only their paths.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from mailproxy_config.schema import Array, MapOf, Object, Rule, String
from mailproxy_config.value_types import ErrorPath, Raw, ValueType, read_items


class ReferenceKind(StrEnum):
    """The kinds of Kubernetes objects that can be referenced."""

    SECRET = "Secret"  # noqa: S105 -- a kind of object
    CONFIG_MAP = "ConfigMap"


@dataclass(frozen=True, slots=True, order=True)
class KeyRef:
    """One key of a Secret or ConfigMap in the namespace of the resource."""

    kind: ReferenceKind
    name: str
    key: str


FileRef = KeyRef | str
"""A reference, or the absolute path of a file."""


@dataclass(frozen=True, slots=True)
class CertificateRef:
    """A certificate chain and its private key."""

    certificate: FileRef
    key: FileRef
    server_names: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class SelectorRef:
    """The labels of Secrets with certificates, in the namespace of the resource, sorted."""

    labels: tuple[tuple[str, str], ...]

    def with_paths(self, mounts: Mounts) -> str:
        """The directory where the Secrets are mounted."""
        return mounts.selected(self)


@dataclass(frozen=True, slots=True)
class HeaderRef:
    """One ``auth_http_header`` whose value is in a Secret."""

    name: str
    source: KeyRef


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """All keys that a configuration uses of one Secret or ConfigMap, sorted."""

    kind: ReferenceKind
    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where references are mounted: ``ROOT/secrets/NAME/KEY`` and ``ROOT/configmaps/NAME/KEY``.

    ``members`` is the path of the document with the members of Services; empty if nobody writes one.
    """

    root: str = "/etc/mailproxy-refs"
    members: str = ""

    def directory(self, kind: ReferenceKind, name: str) -> str:
        """The directory with the keys of one object."""
        return f"{self.root}/{'secrets' if kind is ReferenceKind.SECRET else 'configmaps'}/{name}"

    def selected(self, ref: SelectorRef) -> str:
        """The directory with the selected Secrets: a directory for each, in their order of precedence."""
        digest = hashlib.sha256(json.dumps(ref.labels).encode()).hexdigest()[:16]
        return f"{self.root}/selected/{digest}"

    def path(self, ref: FileRef) -> str:
        """The path of a reference; a path is returned unchanged."""
        return ref if isinstance(ref, str) else f"{self.directory(ref.kind, ref.name)}/{ref.key}"


OBJECT_NAME: Final = String(
    max_length=253,
    min_length=1,
    pattern="^[a-z0-9]([-.a-z0-9]*[a-z0-9])?$",
    hint="the name of an object: lower-case letters, digits, hyphens and dots",
)

DATA_KEY: Final = String(
    max_length=253,
    min_length=1,
    pattern=r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$",
    hint="a key: letters, digits, hyphens, underscores and dots, not beginning with two dots",
)

ABSOLUTE_PATH: Final = String(max_length=1024, pattern="^/", hint="an absolute path")
KEY_REF: Final = Object(
    fields={"name": OBJECT_NAME, "key": DATA_KEY},
    required=("name", "key"),
    descriptions={
        "name": "Name of the Secret or ConfigMap, in the namespace of the MailProxy.",
        "key": "Key in the data of the object.",
    },
)
"""One key of a Secret or a ConfigMap."""


def read_key_ref(kind: ReferenceKind, value: Mapping[str, str]) -> KeyRef:
    """Convert a value of the schema ``KEY_REF``."""
    return KeyRef(kind, value["name"], value["key"])


def format_key_ref(ref: KeyRef) -> Raw:
    """The manifest value of a reference."""
    field = "secretKeyRef" if ref.kind is ReferenceKind.SECRET else "configMapKeyRef"
    return {field: {"name": ref.name, "key": ref.key}}


# --- certificates and other files ----------------------------------------------


def _file(value: Mapping[str, Any], _: ErrorPath) -> FileRef:
    if "secretKeyRef" in value:
        return read_key_ref(ReferenceKind.SECRET, value["secretKeyRef"])
    if "configMapKeyRef" in value:
        return read_key_ref(ReferenceKind.CONFIG_MAP, value["configMapKeyRef"])
    return str(value["file"])


def _format_file(value: FileRef) -> Raw:
    return {"file": value} if isinstance(value, str) else format_key_ref(value)


_SOURCES: Final = ("secretKeyRef", "configMapKeyRef", "file")
FILE_SHAPE: Final = Object(
    example="{file: /PATH} or {secretKeyRef: {name: NAME, key: KEY}}",
    fields={"secretKeyRef": KEY_REF, "configMapKeyRef": KEY_REF, "file": ABSOLUTE_PATH},
    descriptions={
        "secretKeyRef": "Key of a Secret. The operator mounts the Secret and does not read it.",
        "configMapKeyRef": "Key of a ConfigMap.",
        "file": (
            "Absolute path of a file, in a volume of pod.extraVolumes or, without a cluster, on the machine."
        ),
    },
    rules=(
        Rule(
            expression=(
                "[has(self.secretKeyRef), has(self.configMapKeyRef), has(self.file)].filter(x, x).size() == 1"
            ),
            message="exactly one of secretKeyRef, configMapKeyRef and file must be set",
            predicate=lambda value: sum(source in value for source in _SOURCES) == 1,
        ),
    ),
)

_FILE_SYNTAX: Final = "{secretKeyRef: {name, key}}, {configMapKeyRef: {name, key}} or {file}"
FILE: Final = ValueType(
    syntax=_FILE_SYNTAX,
    schema=FILE_SHAPE,
    read=_file,
    write=_format_file,
    nginx=lambda arguments: {"file": arguments[0]},
)

FILES: Final = ValueType(
    syntax="list of " + _FILE_SYNTAX,
    schema=Array(items=FILE_SHAPE, max_items=8),
    read=lambda value, path: read_items(value, path, _file),
    write=lambda value: list(map(_format_file, value)),
    nginx=lambda arguments: [{"file": arguments[0]}],
    appends=True,
)


# --- selected Secrets ----------------------------------------------------------


def _read_selector(value: Mapping[str, Any], _: ErrorPath) -> SelectorRef | str:
    if "directory" in value:
        return str(value["directory"])
    return SelectorRef(tuple(sorted(value["matchLabels"].items())))


def _format_selector(value: SelectorRef | str) -> Raw:
    return {"directory": value} if isinstance(value, str) else {"matchLabels": dict(value.labels)}


SELECTOR: Final = ValueType(
    syntax="{matchLabels} or {directory}",
    schema=Object(
        example="{matchLabels: {LABEL: VALUE}} or {directory: /PATH}",
        fields={"matchLabels": MapOf(values=String(max_length=63), max_fields=8), "directory": ABSOLUTE_PATH},
        descriptions={
            "matchLabels": "Labels of Secrets of type kubernetes.io/tls in the namespace of the MailProxy.",
            "directory": "Absolute path of a directory with NAME/tls.crt and NAME/tls.key for each pair.",
        },
        rules=(
            Rule(
                expression="has(self.matchLabels) != has(self.directory)",
                message="exactly one of matchLabels and directory must be set",
                predicate=lambda value: ("matchLabels" in value) != ("directory" in value),
            ),
            Rule(
                expression="!has(self.matchLabels) || self.matchLabels.size() > 0",
                message="matchLabels must have at least one label",
                predicate=lambda value: bool(value.get("matchLabels", True)),
            ),
        ),
    ),
    read=_read_selector,
    write=_format_selector,
    nginx=lambda arguments: {"directory": arguments[0]},
)
