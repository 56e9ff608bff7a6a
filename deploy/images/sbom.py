# SPDX-License-Identifier: Apache-2.0
"""Prints the bill of materials of an image as CycloneDX JSON: ``python deploy/images/sbom.py proxy``.

Its source is the list from which the image is installed, including the hashes.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PROJECT = FOLDER.parents[1] / "pyproject.toml"
IMAGES = ("proxy", "operator")
_PINNED = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;]+)")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def packages(text: str) -> Iterator[tuple[str, str, list[str]]]:
    """Read a list of requirements: name, version and hashes of each package."""
    found: list[tuple[str, str, list[str]]] = []
    for line in text.splitlines():
        pinned = _PINNED.match(line)
        if pinned:
            found.append((pinned[1].lower(), pinned[2], []))
        for digest in _HASH.findall(line):
            found[-1][2].append(digest)
    yield from found


def bill(image: str) -> dict[str, Any]:
    """Create the bill of materials of an image."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    text = (FOLDER / f"requirements-{image}.txt").read_text(encoding="utf-8")
    root = f"pkg:pypi/mailproxy@{project['version']}"
    components = [_component(*one) for one in packages(text)]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "component": {
                "type": "container",
                "bom-ref": root,
                "name": "mailproxy" if image == "proxy" else f"mailproxy-{image}",
                "version": project["version"],
                "purl": root,
                "licenses": [{"license": {"id": project["license"]}}],
            }
        },
        "components": components,
        "dependencies": [{"ref": root, "dependsOn": [one["bom-ref"] for one in components]}],
    }


def _component(name: str, version: str, digests: list[str]) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": name,
        "version": version,
        "purl": purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{name}/{version}/",
                "hashes": [{"alg": "SHA-256", "content": digest} for digest in digests],
            }
        ],
    }


if __name__ == "__main__":
    if sys.argv[1:] not in [[image] for image in IMAGES]:
        sys.exit(f"usage: sbom.py {'|'.join(IMAGES)}")
    json.dump(bill(sys.argv[1]), sys.stdout, indent=1)
    sys.stdout.write("\n")
