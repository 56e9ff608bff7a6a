# SPDX-License-Identifier: Apache-2.0
"""Writes what became of BackendTLSPolicies into their ``status.ancestors``."""

from __future__ import annotations

from mailproxy_operator.api.cluster import Cluster, Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.policies import ancestors
from mailproxy_operator.policies.resolve import Resolution


class PolicyStatus:
    """The entries of MailProxies in policies.

    Args:
        cluster: The cluster port.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def update(self, key: Key, resolution: Resolution, now: str) -> None:
        """Write the entries of a MailProxy that have changed, and remove those that no longer apply.

        Args:
            key: The MailProxy.
            resolution: What policies mean for it.
            now: The time, as RFC 3339 text.

        Raises:
            TransientError: A policy has changed meanwhile, or the API server failed.
        """
        for use in resolution.uses:
            if ancestors.has_room(use.policy, key.name):
                entries = ancestors.with_entry(use.policy, key.name, use.verdict, now)
                await self._write(use.policy, entries)
        for policy in resolution.unconcerned:
            await self._write(policy, ancestors.without_entry(policy, key.name))

    async def remove(self, key: Key) -> None:
        """Remove all entries of a MailProxy that was deleted.

        Raises:
            TransientError: A policy has changed meanwhile, or the API server failed.
        """
        for policy in await self._cluster.policies(key.namespace) or ():
            await self._write(policy, ancestors.without_entry(policy, key.name))

    async def _write(self, policy: Manifest, entries: list[Manifest]) -> None:
        if ancestors.is_changed(policy, entries):
            await self._cluster.write_ancestors(policy, entries)
