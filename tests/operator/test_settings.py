# SPDX-License-Identifier: Apache-2.0
"""Versions of Kubernetes, as people and providers write them."""

from __future__ import annotations

import pytest

from mailproxy_operator.settings import KubeVersion


@pytest.mark.parametrize("text", ["1.30", "v1.30.4", "1.30+", "v1.30.2-gke.100"])
def test_versions(text: str) -> None:
    assert KubeVersion.parse(text) == KubeVersion(1, 30)
    assert KubeVersion(1, 9) < KubeVersion.parse(text) < KubeVersion(2, 0)
    assert str(KubeVersion.parse(text)) == "1.30"


@pytest.mark.parametrize("text", ["", "one", "1", "v1"])
def test_what_is_none(text: str) -> None:
    with pytest.raises(ValueError, match="write it as"):
        KubeVersion.parse(text)
