# SPDX-License-Identifier: Apache-2.0
"""The cluster port: the interface to an API server or to the local machine.

Its callers use dictionaries and the exceptions of ``errors``; the implementation
interprets status codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from types import MappingProxyType
from typing import Protocol

from mailproxy_operator.api import names
from mailproxy_operator.api.kinds import Kind, Manifest
from mailproxy_operator.api.kube_version import KubeVersion

NO_LABELS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True, slots=True, order=True)
class Key:
    """The namespace and name of a MailProxy."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamConfigError:
    """An error at the mail servers that somebody has to mend; equal if stage and failure are.

    Attributes:
        stage: The step of the login.
        failure: Why TLS could not be started; empty for another error.
        message: The cause, and what to set.
    """

    stage: str
    failure: str = ""
    message: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class UpstreamState:
    """What logins of one server at its mail servers have shown; equal if nothing but texts differs.

    Attributes:
        server: The name of the server.
        state: TLS is ``failed``, ``succeeded`` or ``unknown``.
        failure: Why TLS could not be started last; empty if it could.
        upstream: The address at which it could not.
        message: The cause, and what to set.
        certificate_expires: The earliest expiry of a certificate of a mail server.
        errors: Configuration errors, the newest first.
    """

    server: str
    state: str = "unknown"
    failure: str = ""
    upstream: str = field(default="", compare=False)
    message: str = field(default="", compare=False)
    certificate_expires: datetime | None = None
    errors: tuple[UpstreamConfigError, ...] = ()


@dataclass(frozen=True, slots=True)
class RunningConfig:
    """The running configuration of a pod: the response of ``/config``.

    Attributes:
        hash: The hash of the configuration.
        last_error: Why it rejected the newest configuration; empty if it did not.
        upstreams: What it reports about mail servers, by server; servers without logins are left out.
        certificates: Certificates that clients choose by name and that the pod does not use, with the reason.
        route_tables: Lines of tables of routes whose earlier versions it uses: ``PATH:LINE: reason``.
        user_files: The same of lists of users.
    """

    hash: str
    last_error: str = ""
    upstreams: tuple[UpstreamState, ...] = ()
    certificates: tuple[str, ...] = ()
    route_tables: tuple[str, ...] = ()
    user_files: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """The result of an apply.

    Attributes:
        manifest: The current object.
        warnings: Warnings of the API server, such as a violation of Pod Security.
    """

    manifest: Manifest
    warnings: tuple[str, ...] = ()


class Cluster(Protocol):
    """The interface to a cluster.

    Every method has its own deadline.  It raises ``TransientError`` when a retry may
    succeed, and ``TerminalError`` otherwise.
    """

    async def get(self, kind: Kind, key: Key) -> Manifest | None:
        """Read one object; ``None`` when it does not exist or the cluster does not have the kind."""

    async def list_labelled(self, kind: Kind, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the objects of a namespace with these labels; empty if the cluster does not have the kind."""

    async def list_tls_secrets(self, namespace: str, labels: Mapping[str, str]) -> list[Manifest]:
        """Read the metadata of Secrets of type kubernetes.io/tls with these labels, without their data."""

    async def version(self) -> KubeVersion:
        """Return the version of the oldest node."""

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        """Apply a manifest; fields that are not in the manifest are not changed.

        Raises:
            NameConflict: An object of this name has another owner.
            NotFoundOrConflict: The uid in the manifest is not that of the object.
            KindMissing: The cluster does not have this kind.
        """

    async def delete(self, manifest: Manifest) -> bool:
        """Delete the object with this uid; return whether it existed."""

    async def apply_status(self, manifest: Manifest) -> Manifest | None:
        """Write the status of a MailProxy.

        Args:
            manifest: Its identity and its complete status.

        Returns:
            The current MailProxy, if known.
        """

    async def patch_annotations(
        self, kind: Kind, key: Key, annotations: Mapping[str, str], *, labels: Mapping[str, str] = NO_LABELS
    ) -> Manifest | None:
        """Set annotations and labels on an object, if it exists.

        Returns:
            The current object, if known.
        """

    async def running_config(self, pod: Manifest) -> RunningConfig | None:
        """Request the running configuration of a pod; ``None`` when it does not respond."""

    async def policies(self, namespace: str) -> list[Manifest] | None:
        """Read the BackendTLSPolicies of a namespace; ``None`` if the cluster does not have the kind."""

    async def config_map_keys(self, key: Key) -> frozenset[str] | None:
        """Read the keys of a ConfigMap of another owner; ``None`` if it does not exist."""

    async def write_ancestors(self, policy: Manifest, entries: list[Manifest]) -> None:
        """Write ``status.ancestors`` of a policy, if it still has the version that was read.

        Raises:
            TransientError: It has another version.
        """

    async def mount_failures(self, namespace: str) -> dict[str, str]:
        """Return recent mount failures: pod name to message."""

    async def create_event(self, manifest: Manifest) -> None:
        """Create an event about a MailProxy; a failure is not an error."""
