# SPDX-License-Identifier: Apache-2.0
"""Secrets that ``sslCertificateSelector`` selects: names and times are requested, never their data."""

from __future__ import annotations

from typing import Final

from mailproxy_config.compile import collect_selectors
from mailproxy_config.secret_refs import SelectorRef
from mailproxy_operator.api.cluster import Cluster
from mailproxy_operator.crd.resource import Resource
from mailproxy_operator.errors import TerminalError
from mailproxy_operator.reasons import Reason
from mailproxy_operator.render.selected import SelectedSecret, Selection

RELIST_SECONDS: Final = 60.0
"""Seconds between two lists: Secrets are not watched, since a watch by kopf would receive their data."""


async def select_secrets(cluster: Cluster, resource: Resource) -> Selection:
    """List the Secrets of every selector, the oldest first.

    Raises:
        OperatorError: They cannot be listed.
    """
    selectors = collect_selectors(resource.manifest)
    return {selector: await _list(cluster, resource.key.namespace, selector) for selector in selectors}


async def _list(cluster: Cluster, namespace: str, selector: SelectorRef) -> tuple[SelectedSecret, ...]:
    try:
        found = await cluster.list_tls_secrets(namespace, dict(selector.labels))
    except TerminalError as error:
        if error.reason is not Reason.FORBIDDEN:
            raise
        hint = (
            "sslCertificateSelector needs the permission to list Secrets: see rbac.listSecrets of the chart"
        )
        raise TerminalError(f"{error}; {hint}", error.reason) from error
    listed = (
        SelectedSecret(str(one["metadata"].get("creationTimestamp") or ""), str(one["metadata"]["name"]))
        for one in found
    )
    return tuple(sorted(listed))
