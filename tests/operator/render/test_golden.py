# SPDX-License-Identifier: Apache-2.0
"""The complete rendered objects are compared with golden files.

Set ``UPDATE_GOLDEN=1`` to write the files again, and review the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mailproxy_operator.api.kube_version import KubeVersion
from mailproxy_operator.render.manifest_text import rendered_text
from mailproxy_operator.settings import Platform

GOLDEN = Path(__file__).parent / "golden"
PLATFORM = Platform(kube_version=KubeVersion(1, 36), image="registry.example/mailproxy:1")
CASES = sorted(path.name.removesuffix(".in.yaml") for path in GOLDEN.glob("*.in.yaml"))


@pytest.mark.parametrize("case", CASES)
def test_rendering_equals_golden_file(case: str) -> None:
    resource, expected = GOLDEN / f"{case}.in.yaml", GOLDEN / f"{case}.out.yaml"
    rendered = rendered_text(resource.read_text(), resource.name, PLATFORM)
    if os.environ.get("UPDATE_GOLDEN"):
        expected.write_text(rendered)
    assert rendered == expected.read_text()


@pytest.mark.parametrize("case", CASES)
def test_rendering_twice_gives_the_same_bytes(case: str) -> None:
    text = (GOLDEN / f"{case}.in.yaml").read_text()
    assert rendered_text(text, case, PLATFORM) == rendered_text(text, case, PLATFORM)
