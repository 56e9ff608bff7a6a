# SPDX-License-Identifier: Apache-2.0
"""Versions of Kubernetes, as users and providers write them."""

from __future__ import annotations

import pytest

from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.settings import OperatorSettings


@pytest.mark.parametrize("text", ["1.30", "v1.30.4", "1.30+", "v1.30.2-gke.100"])
def test_version_formats(text: str) -> None:
    assert KubeVersion.parse(text) == KubeVersion(1, 30)
    assert KubeVersion(1, 9) < KubeVersion.parse(text) < KubeVersion(2, 0)
    assert str(KubeVersion.parse(text)) == "1.30"


@pytest.mark.parametrize("text", ["", "one", "1", "v1"])
def test_invalid_versions_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="write it as"):
        KubeVersion.parse(text)


@pytest.mark.parametrize(
    ("lease_namespace", "pod", "is_owned"),
    [
        ("system", ("system", "op-0", "u"), True),
        ("elsewhere", ("system", "op-0", "u"), False),  # Kubernetes would delete the Lease at once
        ("system", ("system", "", ""), False),
        ("", ("", "op-0", "u"), False),
    ],
)
def test_lease_has_owner_only_in_same_namespace(
    lease_namespace: str, pod: tuple[str, str, str], is_owned: bool
) -> None:
    namespace, name, uid = pod
    settings = OperatorSettings(
        lease_namespace=lease_namespace, pod_namespace=namespace, pod_name=name, pod_uid=uid
    )
    assert (settings.lease_owner() is not None) == is_owned
