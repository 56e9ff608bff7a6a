# SPDX-License-Identifier: Apache-2.0
"""The images that this node has: those of this checkout, and Python's.

No image is unpacked.  A container sees the files of this machine, and
``python``, ``mailproxy`` and ``mailproxy-operator`` where the image has them; these
start this checkout with the Python of the test environment.  Entry point, command and
variables are read from the Dockerfile.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from support.dockerfile import Dockerfile

ROOT: Final = Path(__file__).parents[3]
_PATH: Final = "/usr/local/bin:/usr/local/sbin:/usr/sbin:/usr/bin:/sbin:/bin"
_TARGETS: Final = {"mailproxy": "proxy", "mailproxy-operator": "operator"}
_MODULES: Final = {"mailproxy": "mailproxy", "mailproxy-operator": "mailproxy_operator"}


@dataclass(frozen=True)
class Image:
    """What a container's command is made of."""

    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    user: int


def find_image(reference: str) -> Image | None:
    """Return an image, or ``None`` if this node does not have it."""
    name = reference.partition("@")[0].rpartition("/")[2].partition(":")[0]
    if name == "python":
        return Image((), ("python3",), {"PATH": _PATH}, 0)
    if name not in _TARGETS:
        return None
    stage = Dockerfile.read(ROOT / "Dockerfile").stages[_TARGETS[name]]
    environment = {key: value.replace("$PATH", _PATH) for key, value in stage.pairs("ENV").items()}
    return Image(
        tuple(stage.last("ENTRYPOINT").words()),
        tuple(stage.last("CMD").words()),
        environment,
        int(stage.last("USER").rest.partition(":")[0]),
    )


def write_programs(layer: Path) -> None:
    """Write the programs of the images into the top layer of a container's files."""
    python = sys.executable
    for readable in {python, os.path.realpath(python), str(ROOT / "x")}:
        for parent in reversed(Path(readable).parents[:-1]):
            (layer / str(parent).lstrip("/")).mkdir(mode=0o755, parents=True, exist_ok=True)
    for folder in ("usr/local/bin", "opt/mailproxy/bin"):
        (layer / folder).mkdir(parents=True, exist_ok=True)
        _script(layer / folder / "python", f'exec {python} "$@"')
    for program, module in _MODULES.items():
        _script(layer / "opt/mailproxy/bin" / program, f'exec {python} -m {module} "$@"')


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
