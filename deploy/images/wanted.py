# SPDX-License-Identifier: Apache-2.0
"""Prints what an image asks for, before versions are pinned: ``wanted.py proxy``, ``operator`` or ``build``.

The proxy's image has what the distribution depends on.  The operator's has its
extra alone, which is complete in itself: it needs no DNS library and no reader of ``nginx.conf``.
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def wanted(image: str) -> list[str]:
    """Read the requirements of an image from ``pyproject.toml``.

    Raises:
        KeyError: There is no such image.
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
    sys.stdout.write("\n".join(wanted(sys.argv[1])) + "\n")
