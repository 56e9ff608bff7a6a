# SPDX-License-Identifier: Apache-2.0
"""The CRD fits into the annotation of plain ``kubectl apply``, as docs/install.md says."""

from __future__ import annotations

import json
import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
LARGEST_ANNOTATIONS = 256 * 1024
"""Bytes of all annotations of an object together (``TotalAnnotationSizeLimitB`` of Kubernetes)."""


def test_crd_fits_into_last_applied_annotation() -> None:
    crd = yaml.safe_load((ROOT / "deploy" / "crd.yaml").read_text())
    copy = json.dumps(crd, separators=(",", ":"))
    assert len(copy.encode()) < LARGEST_ANNOTATIONS * 0.85
    page = (ROOT / "docs" / "install.md").read_text()
    assert "`--server-side` is not necessary" in page
    found = re.search(r"the CRD has (\d+) of the 256 kB", page)
    assert found
    assert abs(int(found[1]) - len(copy) / 1000) < 5, f"docs/install.md: write {len(copy) // 1000} kB"
