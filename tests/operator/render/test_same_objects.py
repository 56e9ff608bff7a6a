# SPDX-License-Identifier: Apache-2.0
"""``render`` prints exactly the objects that the operator applies."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from mailproxy_operator.api import names
from mailproxy_operator.api.cluster import Applied, Key
from mailproxy_operator.api.kinds import Manifest
from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.controller.reconciler import Reconciler
from mailproxy_operator.render.manifest_text import rendered_text
from mailproxy_operator.settings import Platform
from support.operator_cluster import MemoryCluster

PLATFORM = Platform(kube_version=KubeVersion(1, 36))
CASES = sorted((Path(__file__).parent / "golden").glob("*.in.yaml"), key=lambda path: path.name)


class Recording(MemoryCluster):
    """Records the objects that are applied."""

    def __init__(self) -> None:
        super().__init__()
        self.applied: list[Manifest] = []

    async def apply(
        self, manifest: Manifest, *, manager: str = names.FIELD_MANAGER, force: bool = True
    ) -> Applied:
        self.applied.append(copy.deepcopy(manifest))
        return await super().apply(manifest, manager=manager, force=force)


@pytest.mark.parametrize("text", [path.read_text() for path in CASES], ids=[path.name for path in CASES])
async def test_operator_applies_same_objects_as_render_prints(text: str) -> None:
    cluster = Recording()
    stored = cluster.put(yaml.safe_load(text))
    key = Key(stored["metadata"]["namespace"], stored["metadata"]["name"])
    printed = rendered_text(yaml.safe_dump(stored), "stdin", PLATFORM)
    await Reconciler(cluster, PLATFORM).reconcile(key)
    assert cluster.applied == [one for one in yaml.safe_load_all(printed) if one]
