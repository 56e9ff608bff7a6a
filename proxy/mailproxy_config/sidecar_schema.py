# SPDX-License-Identifier: Apache-2.0
"""What ``spec.sidecar`` may look like; its values are read by ``deployment``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from mailproxy_config.schema import Labels, ListOf, Record, Rule, Text

_WITH_VALUES: Final = ("In", "NotIn")
_WITHOUT_VALUES: Final = ("Exists", "DoesNotExist")


def _values_fit(value: Mapping[str, Any]) -> bool:
    return (value["operator"] in _WITH_VALUES) == bool(value.get("values"))


_SELECTOR: Final = Record(
    fields={
        "matchLabels": Labels(values=Text(longest=63)),
        "matchExpressions": ListOf(
            most=16,
            items=Record(
                fields={
                    "key": Text(longest=317, shortest=1),
                    "operator": Text(longest=16, words=(*_WITH_VALUES, *_WITHOUT_VALUES)),
                    "values": ListOf(items=Text(longest=63), most=64),
                },
                required=("key", "operator"),
                descriptions={
                    "key": "The label.",
                    "operator": "In, NotIn, Exists or DoesNotExist.",
                    "values": "The values that In and NotIn compare with.",
                },
                rules=(
                    Rule(
                        expression=(
                            "(self.operator in ['In', 'NotIn']) == "
                            "(has(self.values) && self.values.size() > 0)"
                        ),
                        message="In and NotIn need values; Exists and DoesNotExist take none",
                        holds=_values_fit,
                    ),
                ),
            ),
        ),
    },
    descriptions={
        "matchLabels": "Labels that a pod must have.",
        "matchExpressions": "Conditions that a pod's labels must meet, as in a Deployment.",
    },
)
SIDECAR: Final = Record(
    fields={
        "selector": _SELECTOR,
        "failurePolicy": Text(longest=8, words=("Ignore", "Fail"), default="Ignore"),
    },
    descriptions={
        "selector": "Pods that may carry it; every pod of the namespace that asks for it unless given.",
        "failurePolicy": (
            "What becomes of a pod that asks for it and cannot get it: Ignore lets it run without, "
            "with a warning; Fail refuses it."
        ),
    },
)
"""``spec.sidecar``."""
