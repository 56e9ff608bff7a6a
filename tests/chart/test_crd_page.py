# SPDX-License-Identifier: Apache-2.0
"""The reference page of the resource is fresh and lists every field."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
import yaml

from support.helm import ROOT

sys.path.insert(0, str(ROOT / "charts"))
from crd_page import CRD, PAGE, fields, kind, page  # type: ignore[import-not-found]

Schema = dict[str, Any]
LOADED: Schema = yaml.safe_load(CRD.read_text())
ROOT_SCHEMA: Schema = LOADED["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]


def test_crd_page_is_fresh() -> None:
    assert PAGE.read_text() == page(LOADED), "run: make generate"


@pytest.mark.parametrize("part", ["spec", "status"])
def test_crd_page_lists_every_field(part: str) -> None:
    text = PAGE.read_text()
    sections = {name: body for name, body in re.findall(r"^## (\S+)\n(.+?)(?=^## )", text, re.DOTALL | re.M)}
    for field in fields(ROOT_SCHEMA[part], part):
        place = re.match(r"(spec\.mail|spec\.servers\[\]|spec|status)\.(.+)", field.path)
        if place is None or place[2] in {"mail", "servers"}:
            continue
        shown = {"spec.servers[]": ("spec.servers[]", "spec.mail")}.get(place[1], (place[1],))
        assert any(f"| `{place[2]}` |" in sections[name] for name in shown), field.path


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "boolean"}, "`true` \\| `false`"),
        ({"enum": ["V1", "V2"]}, "`V1` \\| `V2`"),
        ({"type": "integer", "minimum": 1, "maximum": 65535}, "number, 1 to 65535"),
        ({"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "number"),
        ({"x-kubernetes-int-or-string": True}, "text or number"),
        ({"type": "array", "items": {"type": "string"}, "maxItems": 4}, "list of text (up to 4)"),
        ({"type": "object", "additionalProperties": {"type": "string"}}, "map of text"),
        ({"type": "object", "x-kubernetes-preserve-unknown-fields": True}, "as in Kubernetes"),
        ({"type": "string", "format": "date-time"}, "date-time"),
    ],
)
def test_kind_describes_a_schema(schema: Schema, expected: str) -> None:
    assert kind(schema) == expected
