# SPDX-License-Identifier: Apache-2.0
"""``deploy/images/strip.py``: what it removes from an environment, and when it refuses to."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
STRIP: Final = ROOT / "deploy/images/strip.py"

TABLE: Final = """
import typing
if typing.TYPE_CHECKING:
    from {package}.models.v1_pod import V1Pod
else:
    from importlib import import_module
    _exports = {{"V1Pod": "{models}.v1_pod", "V1Secret": "{models}.v1_secret", "V1Meta": "{models}.v1_meta"}}
    def __getattr__(name):
        return getattr(import_module(_exports[name], __name__), name)
"""
LIBRARY: Final = {
    "kubernetes/__init__.py": "from . import client\n",
    "kubernetes/config.py": "",
    "kubernetes/aio/__init__.py": "",
    "library/__init__.py": "from kubernetes.client import V1Secret\n",
    "library/py.typed": "",
    "library/_fast.pyx": "",
    "library/test_library.py": "import library\n",
    "library/tests/data.txt": "",
    "library/LICENSE.txt": "licence",
    "library-1.dist-info/RECORD": "library/__init__.py,sha256=x,1\nlibrary/py.typed,,\n",
    "cffi/__init__.py": "import pycparser\n",
    "pycparser/__init__.py": "",
    "mailproxy_operator/__init__.py": "",
    "mailproxy_operator/cli.py": "import library, kubernetes.config\n",
}
"""An environment with a client of the layout of the Kubernetes client, and a library that uses one model."""


def _client(package: str) -> dict[str, str]:
    folder = package.replace(".", "/")
    models = {
        "v1_pod": "from {0}.models.v1_meta import V1Meta\nclass V1Pod: pass\n",
        "v1_secret": "from {0}.models.v1_meta import V1Meta\nclass V1Secret: pass\n",
        "v1_meta": "class V1Meta: pass\n",
    }
    return {
        f"{folder}/__init__.py": TABLE.format(package=package, models=".models"),
        f"{folder}/models/__init__.py": TABLE.format(package=package, models=""),
        f"{folder}/api/__init__.py": TABLE.format(package=package, models="..models"),
        **{f"{folder}/models/{name}.py": text.format(package) for name, text in models.items()},
    }


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment without packages."""
    folder = tmp_path_factory.mktemp("strip") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    return folder


@pytest.fixture
def prefix(interpreter: Path, tmp_path: Path) -> Path:
    """A virtual environment with the library and the operator."""
    made = tmp_path / "env"
    subprocess.run(["cp", "-a", str(interpreter), str(made)], check=True)
    files = {**LIBRARY, **_client("kubernetes.client"), **_client("kubernetes.aio.client")}
    for name, text in files.items():
        _write(made, name, text)
    for program in ("mailproxy-operator", "mailproxy", "cffi-gen-src"):
        (made / "bin" / program).touch()
    return made


def _site(prefix: Path) -> Path:
    [site] = prefix.glob("lib/python3.*/site-packages")
    return site


def _write(prefix: Path, name: str, text: str) -> None:
    file = _site(prefix) / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _files(prefix: Path) -> set[str]:
    site = _site(prefix)
    return {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}


def _strip(prefix: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(STRIP), str(prefix), "mailproxy-operator"]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _stripped(prefix: Path) -> set[str]:
    """Strip an environment, and return the removed files."""
    before = _files(prefix)
    done = _strip(prefix)
    assert done.returncode == 0, done.stderr
    return before - _files(prefix)


def _refused(prefix: Path) -> str:
    """Try to strip an environment that is not stripped, and return the message."""
    before = _files(prefix), sorted((prefix / "bin").iterdir())
    done = _strip(prefix)
    assert done.returncode == 1, done.stdout
    assert (_files(prefix), sorted((prefix / "bin").iterdir())) == before
    return done.stderr


def test_models_that_nothing_imports_are_removed(prefix: Path) -> None:
    removed = {name for name in _stripped(prefix) if name.startswith("kubernetes")}
    models = ("v1_meta", "v1_pod", "v1_secret")
    assert removed == {
        "kubernetes/client/models/v1_pod.py",
        "kubernetes/client/api/__init__.py",
        *(f"kubernetes/aio/client/models/{name}.py" for name in models),
        *(f"kubernetes/aio{name}/__init__.py" for name in ("", "/client", "/client/api", "/client/models")),
    }


def test_kept_model_is_imported_by_its_lazy_name(prefix: Path) -> None:
    _stripped(prefix)
    code = "import kubernetes.client as c; print(c.V1Secret.__module__, c.V1Meta.__module__); c.V1Pod"
    done = subprocess.run([prefix / "bin/python", "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["kubernetes.client.models.v1_secret", "kubernetes.client.models.v1_meta"]
    assert "No module named 'kubernetes.client.models.v1_pod'" in done.stderr


@pytest.mark.parametrize(
    "code",
    [
        "from kubernetes import client\nclient.V1Pod()\n",
        "from kubernetes import client\nPOD = 'V1Pod'\n",
        "def f():\n    from kubernetes.client.models import V1Pod\n",
        "from kubernetes.client.models.v1_pod import V1Pod\n",
        "import importlib\nimportlib.import_module('kubernetes.client.models.v1_pod')\n",
    ],
    ids=["attribute", "string", "in a function", "module", "import_module"],
)
def test_model_stays_where_its_name_is_in_the_code(prefix: Path, code: str) -> None:
    _write(prefix, "mailproxy_operator/uses.py", code)
    assert "kubernetes/client/models/v1_pod.py" not in _stripped(prefix)


def test_tests_stubs_and_unused_distributions_are_removed(prefix: Path) -> None:
    removed = {name for name in _stripped(prefix) if not name.startswith("kubernetes")}
    assert removed == {
        "library/py.typed",
        "library/_fast.pyx",
        "library/test_library.py",
        "library/tests/data.txt",
        "cffi/__init__.py",
        "pycparser/__init__.py",
    }
    assert not (_site(prefix) / "cffi").exists()
    assert (_site(prefix) / "library-1.dist-info/RECORD").read_text() == "library/__init__.py,sha256=x,1\n"


def test_only_python_and_the_program_stay(prefix: Path) -> None:
    _stripped(prefix)
    programs = {path.name for path in (prefix / "bin").iterdir()}
    assert "mailproxy-operator" in programs
    assert all(name == "mailproxy-operator" or name.startswith("python") for name in programs)


# -- refusals


@pytest.mark.parametrize(
    ("file", "code", "reason"),
    [
        (
            "kubernetes/config.py",
            "from . import client\nx = getattr(client, name)\n",
            "getattr(client, name)",
        ),
        (
            "kubernetes/config.py",
            "import kubernetes.client.models\nx = getattr(kubernetes.client.models, name())\n",
            "getattr(kubernetes.client.models, name())",
        ),
        ("kubernetes/config.py", "import importlib\nimportlib.import_module(name)\n", "import_module(name)"),
        ("library/__init__.py", "from . import test_library\n", "library imports library.test_library"),
        ("library/__init__.py", "def f():\n    import cffi\n", "library imports cffi"),
        ("kubernetes/client/models/__init__.py", "", "has no table _exports: its layout is unknown"),
    ],
)
def test_unknown_code_is_refused_and_nothing_removed(prefix: Path, file: str, code: str, reason: str) -> None:
    _write(prefix, file, code)
    assert reason in _refused(prefix)


def test_missing_program_is_refused(prefix: Path) -> None:
    (prefix / "bin/mailproxy-operator").unlink()
    assert "has no program mailproxy-operator" in _refused(prefix)


def test_module_that_cannot_be_imported_fails_the_build(prefix: Path) -> None:
    _write(prefix, "mailproxy_operator/broken.py", "exec('import pycparser')\n")
    done = _strip(prefix)
    assert done.returncode == 1
    assert "No module named 'pycparser'" in done.stderr


def test_listed_lookups_are_in_the_installed_client() -> None:
    """An entry that is not is out of date."""
    listed = re.findall(r'\("(kubernetes[\w.]+)", "(.+)"\),', STRIP.read_text())
    assert len(listed) == 6
    for module, code in listed:
        spec = find_spec(module)
        assert spec is not None
        assert spec.origin is not None
        assert code in Path(spec.origin).read_text()
