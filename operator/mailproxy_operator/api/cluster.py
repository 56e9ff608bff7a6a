# SPDX-License-Identifier: Apache-2.0
"""The port to where objects live: an API server, or the local machine.

Everything above it is told in dictionaries and in the errors of ``errors``;
what a status code means is the business of whoever implements this.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Protocol

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Kind, Manifest
from mailproxy_operator.api.kube_version import KubeVersion

NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """Which MailProxy: its namespace and name."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class RunningConfig:
    """What a pod says about its configuration: the answer of ``/config``."""

    hash: str
    last_error: str = ""


@dataclass(frozen=True, slots=True)
class Applied:
    """What came of an apply.

    Attributes:
        manifest: The object as it is now.
        warnings: What the other side had to say about it, such as a violation of Pod Security.
    """

    manifest: Manifest
    warnings: tuple[str, ...] = ()


class Cluster(Protocol):
    """Where objects live.

    Every method keeps its own deadline and raises ``TransientError`` when waiting
    may help, ``TerminalError`` when it will not.
    """

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Read one object; ``None`` when there is none, or the cluster lacks the kind."""

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the objects of a namespace that carry these labels; none where the cluster lacks the kind."""

    async def version(self) -> KubeVersion:
        """Tell how old the oldest node may be."""

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        """Make an object hold what the manifest says, and leave everything else in it alone.

        Raises:
            NameConflict: An object of this name belongs to somebody else.
            NotFoundOrConflict: The manifest names a uid that the object no longer has.
            KindMissing: The cluster does not have this kind.
        """

    async def delete(self, manifest: Manifest) -> bool:
        """Delete this very object; returns whether it was there."""

    async def apply_status(self, manifest: Manifest) -> Manifest | None:
        """Write the status of a MailProxy.

        Args:
            manifest: Its identity and its whole status.

        Returns:
            The MailProxy as it is now, where that is known.
        """

    async def patch_annotations(
        self, kind: Kind, key: Key, annotations: Mapping[str, str], *, labels: Mapping[str, str] = NO_LABELS
    ) -> Manifest | None:
        """Set annotations, and labels, on an object, if it is still there.

        Returns:
            The object as it is now, where that is known.
        """

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        """Ask a pod which configuration it runs; ``None`` when it does not answer."""

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        """Tell what could not be mounted lately: pod name to message."""

    async def create_event(self, manifest: Manifest) -> None:
        """Publish an event about a MailProxy; failing to do so is not an error."""
