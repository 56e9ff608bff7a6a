# SPDX-License-Identifier: Apache-2.0
"""Prints the direct requirements of an image, without pinned versions: ``direct_requirements.py proxy``.

The proxy's image has the dependencies of the distribution.  The operator's image has only those of its
extra, which is complete: it needs neither the DNS library nor the parser of ``nginx.conf``.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def direct_requirements(image: str) -> list[str]:
    """Read the requirements of an image from ``pyproject.toml``.

    Args:
        image: ``proxy``, ``operator`` or ``build``.

    Raises:
        KeyError: The image does not exist.
    """
    found = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))
    project = found["project"]
    lists: dict[str, list[str]] = {
        "proxy": project["dependencies"],
        "operator": project["optional-dependencies"]["operator"],
        "build": found["build-system"]["requires"],
    }
    return lists[image]


if __name__ == "__main__":
    sys.stdout.write("\n".join(direct_requirements(sys.argv[1])) + "\n")
