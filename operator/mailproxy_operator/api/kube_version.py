# SPDX-License-Identifier: Apache-2.0
"""Versions of Kubernetes."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, order=True, slots=True)
class KubeVersion:
    """The parts of a Kubernetes version that decisions depend on."""

    major: int = 1
    minor: int = 29

    @classmethod
    def parse(cls, text: str) -> KubeVersion:
        """Parse ``1.36``, ``v1.36.2`` or the form of some providers (``1.29+``).

        Raises:
            ValueError: The text has another form.
        """
        found = re.match(r"v?(\d+)\.(\d+)", text)
        if not found:
            raise ValueError(f"not a Kubernetes version: {text!r}; write it as 1.36")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"


OLDEST = KubeVersion()
"""The oldest supported version."""
