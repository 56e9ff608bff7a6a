# SPDX-License-Identifier: Apache-2.0
"""A MailProxy resource as a typed value; only this module parses the raw object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mailproxy_config.kubernetes import DeploymentSpec
from mailproxy_config.manifest import MailProxyManifest, parse_manifest
from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Key
from mailproxy_operator.api.kinds import Manifest


@dataclass(frozen=True, slots=True)
class Resource:
    """A MailProxy: its identity and its specification."""

    key: Key
    uid: str
    generation: int
    manifest: MailProxyManifest

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Resource:
        """Read the body of a MailProxy.

        Raises:
            ConfigError: It is not valid; the error contains all problems, each with its path.
        """
        metadata = body.get("metadata") or {}
        manifest = parse_manifest({key: value for key, value in body.items() if key != "status"})
        key = Key(str(metadata.get("namespace") or "default"), str(metadata.get("name") or ""))
        return cls(key, str(metadata.get("uid") or ""), int(metadata.get("generation") or 0), manifest)

    @property
    def name(self) -> str:
        """The resource's name."""
        return self.key.name

    @property
    def deployment(self) -> DeploymentSpec:
        """The settings for Kubernetes."""
        return self.manifest.deployment

    @property
    def mode(self) -> str:
        """How the proxy runs: the kind of the workload, or ``Sidecar``."""
        return self.deployment.mode.value

    @property
    def has_service_settings(self) -> bool:
        """Whether the resource has settings for a Service."""
        return "service" in self.manifest.raw["spec"]

    def owner_reference(self) -> Manifest:
        """Return the owner reference, by which Kubernetes garbage-collects the objects of this resource."""
        return {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def metadata(self, name: str) -> Manifest:
        """Return the metadata of an owned object; without a uid (``render``) there is no owner reference."""
        metadata: Manifest = {
            "name": name,
            "namespace": self.key.namespace,
            "labels": names.labels(self.name),
        }
        if self.uid:
            metadata["ownerReferences"] = [self.owner_reference()]
        return metadata
