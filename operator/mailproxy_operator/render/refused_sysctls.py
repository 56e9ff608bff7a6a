# SPDX-License-Identifier: Apache-2.0
"""The annotation of the circuit breaker: the sysctls that nodes have refused, and the generation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mailproxy_operator.api import names


def written(refused: Iterable[str], generation: int) -> dict[str, str]:
    """Return the refused sysctls as an annotation of the workload."""
    note = {"generation": generation, "names": sorted(refused)}
    return {names.REFUSED_SYSCTLS: json.dumps(note, separators=(",", ":"))}


def read(workload: Mapping[str, Any], generation: int) -> frozenset[str]:
    """Read the sysctls that nodes have refused for this generation; empty for a newer generation."""
    note = (workload["metadata"].get("annotations") or {}).get(names.REFUSED_SYSCTLS)
    try:
        memory = json.loads(note) if note else {}
    except ValueError:
        return frozenset()
    if not isinstance(memory, dict) or memory.get("generation") != generation:
        return frozenset()
    return frozenset(name for name in memory.get("names", []) if isinstance(name, str))
