# SPDX-License-Identifier: Apache-2.0
"""Secrets, ConfigMaps and files that a configuration refers to, and where they are found as files.

Values from a Secret never pass through the configuration: it knows their paths only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class ReferenceKind(StrEnum):
    """The kinds of Kubernetes objects that can be referred to."""

    SECRET = "Secret"  # noqa: S105 -- a kind of object
    CONFIG_MAP = "ConfigMap"


@dataclass(frozen=True, slots=True, order=True)
class KeyRef:
    """One key of one Secret or ConfigMap in the namespace of the resource."""

    kind: ReferenceKind
    name: str
    key: str


FileRef = KeyRef | str
"""A reference, or the absolute path of a file."""


@dataclass(frozen=True, slots=True)
class CertificateRef:
    """A certificate chain and its key."""

    certificate: FileRef
    key: FileRef


@dataclass(frozen=True, slots=True)
class HeaderRef:
    """One ``auth_http_header`` whose value stands in a Secret."""

    name: str
    source: KeyRef


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """Everything that a configuration wants of one Secret or ConfigMap; the keys are sorted."""

    kind: ReferenceKind
    name: str
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mounts:
    """Where references are mounted: ``ROOT/secrets/NAME/KEY`` and ``ROOT/configmaps/NAME/KEY``."""

    root: str = "/etc/mailproxy-refs"

    def directory(self, kind: ReferenceKind, name: str) -> str:
        """The directory that holds the keys of one object."""
        return f"{self.root}/{'secrets' if kind is ReferenceKind.SECRET else 'configmaps'}/{name}"

    def path(self, ref: FileRef) -> str:
        """The file behind a reference; a path is its own."""
        return ref if isinstance(ref, str) else f"{self.directory(ref.kind, ref.name)}/{ref.key}"
