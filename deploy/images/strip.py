# SPDX-License-Identifier: Apache-2.0
"""Removes from the virtual environment of an image what its program never imports.

``strip.py /opt/mailproxy mailproxy-operator`` removes

* the modules of the Kubernetes client that no import reaches, which are nearly all API groups and models;
* tests, type stubs and sources of compiled modules;
* distributions of which only the compiled part is used;
* all programs except Python and the named one, and bytecode, which is compiled afterwards.

Licences and metadata stay.  The script removes nothing, and ends with exit status 1, when it finds
something that it cannot decide: a lookup of modules by computed names that is not listed here, an import of
a module that it would remove, an unknown layout of the Kubernetes client.  At the end it imports every module
of MailProxy.
"""

from __future__ import annotations

import ast
import fnmatch
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

CLIENT: Final = "kubernetes"
"""The package that is stripped to the modules that imports reach."""

LAZY_PACKAGES: Final = tuple(
    f"{CLIENT}.{package}{part}" for package in ("client", "aio.client") for part in ("", ".api", ".models")
)
"""Its packages that import a class when it is first used, by the table ``_exports`` of names and modules."""

COMPUTED_NAMES: Final = frozenset(
    {
        # Responses are converted to models.
        ("kubernetes.client.api_client", "getattr(kubernetes.client.models, klass)"),
        ("kubernetes.aio.client.api_client", "getattr(kubernetes.aio.client.models, klass)"),
        # Events of a watch are converted to models.
        ("kubernetes.watch.watch", "getattr(client.models, item_type_name)"),
        ("kubernetes.aio.watch.watch", "getattr(client.models, item_type_name)"),
        # Objects are created from YAML files.
        ("kubernetes.utils.create_from_yaml", "getattr(client, fcn_to_call)"),
        ("kubernetes.aio.utils.create_from_yaml", "getattr(client, fcn_to_call)"),
    }
)
"""Lookups of classes by computed names: module and code.

The operator uses none of these functions: it sends requests by paths and reads JSON, and kopf watches with
its own client.  Any other lookup could need a module that no import names.
"""

UNUSED_DISTRIBUTIONS: Final = ("cffi", "pycparser")
"""Libraries import only the compiled module ``_cffi_backend`` of cffi, and nothing of pycparser."""

UNUSED_FILES: Final = (
    *("test_*.py", "*_test.py", "conftest.py", "pytest_plugin.py"),
    *("*.pyi", "py.typed", "*.pyx", "*.pxd", "*.pxi", "*.h", "*.c", "*.hash"),
)
UNUSED_FOLDERS: Final = ("tests", "__pycache__", "*-stubs")

_LOOKUPS: Final = {"getattr": 1, "import_module": 0, "import__": 0}
"""Functions that look up a member or a module, and the place of the argument with its name."""

_IMPORT_ALL: Final = """
import importlib, pkgutil, sys
for name in sys.argv[1:]:
    package = importlib.import_module(name)
    for found in pkgutil.walk_packages(package.__path__, name + "."):
        if not found.name.endswith(".__main__"):
            importlib.import_module(found.name)
"""


class CannotStripError(Exception):
    """The environment contains something that this script does not handle."""


@dataclass(slots=True)
class Source:
    """What one module imports and mentions.

    Attributes:
        imports: Names of modules, and for ``from a import b`` also ``a.b``, which is a module or a member.
        words: All identifiers, and all strings, one of which can be the name of a class.
        bound: Names that imports bind, and the modules that they stand for.
        lookups: Calls that compute the name of a module or member: function, first argument, code.
    """

    imports: set[str] = field(default_factory=set)
    words: set[str] = field(default_factory=set)
    bound: dict[str, str] = field(default_factory=dict)
    lookups: list[tuple[str, str, str]] = field(default_factory=list)


class _Reader(ast.NodeVisitor):
    def __init__(self, package: str) -> None:
        self.source = Source()
        self._package = package

    def visit_If(self, node: ast.If) -> None:
        """Skip what is imported for type checkers only."""
        test = node.test
        name = test.attr if isinstance(test, ast.Attribute) else getattr(test, "id", "")
        for child in node.orelse if name == "TYPE_CHECKING" else ast.iter_child_nodes(node):
            self.visit(child)

    def visit_Import(self, node: ast.Import) -> None:
        for one in node.names:
            self.source.imports.add(one.name)
            self.source.bound[one.asname or one.name] = one.name

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self._package.split(".")[: len(self._package.split(".")) - node.level + 1]
            base = ".".join([*above, *([node.module] if node.module else [])])
        self.source.imports.add(base)
        for one in node.names:
            self.source.imports.add(f"{base}.{one.name}")
            self.source.words.add(one.name)
            self.source.bound[one.asname or one.name] = f"{base}.{one.name}"

    def visit_Name(self, node: ast.Name) -> None:
        self.source.words.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.source.words.add(node.attr)
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.source.words.add(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = _LOOKUPS.get(function.lstrip("_"))
        if place is not None and len(node.args) > place:
            name = node.args[place]
            if not isinstance(name, ast.Constant):
                self.source.lookups.append((function, ast.unparse(node.args[0]), ast.unparse(node)))
            elif place == 0:
                self.source.imports.add(str(name.value))
        self.generic_visit(node)


class Site:
    """The installed modules.

    Args:
        folder: The folder ``site-packages``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[str, Source] = {}

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Names and files of all Python modules."""
        return {self._name(file): file for file in sorted(self.folder.rglob("*.py"))}

    def _name(self, file: Path) -> str:
        parts = file.relative_to(self.folder).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def text(self, module: str) -> bytes:
        """Return the code of a module."""
        return self.modules[module].read_bytes()

    def source(self, module: str) -> Source:
        """Read what a module imports."""
        if module not in self._read:
            file = self.modules[module]
            package = module if file.name == "__init__.py" else module.rpartition(".")[0]
            reader = _Reader(package)
            reader.visit(ast.parse(self.text(module)))
            self._read[module] = reader.source
        return self._read[module]

    def exports(self, package: str) -> dict[str, str]:
        """Read the table of a package that imports lazily: names of classes, and their modules.

        Raises:
            CannotStripError: There is no such package or table.
        """
        tree = ast.parse(self.text(package)) if package in self.modules else ast.Module([], [])
        for node in ast.walk(tree):
            target = getattr(node, "target", None) or getattr(node, "targets", [None])[0]
            if isinstance(target, ast.Name) and target.id == "_exports":
                found: dict[str, str] = ast.literal_eval(node.value)  # type: ignore[attr-defined]
                return {name: package + module for name, module in found.items()}
        raise CannotStripError(f"{package} has no table _exports: its layout is unknown")


def unused_files(site: Site) -> set[Path]:
    """Find tests, stubs, sources of compiled modules, and distributions without use."""
    found = set()
    for path in site.folder.rglob("*"):
        parts = path.relative_to(site.folder).parts
        folders = parts if path.is_dir() else parts[:-1]
        if (
            parts[0] in UNUSED_DISTRIBUTIONS
            or any(fnmatch.fnmatch(one, pattern) for one in folders for pattern in UNUSED_FOLDERS)
            or (path.is_file() and any(fnmatch.fnmatch(path.name, pattern) for pattern in UNUSED_FILES))
        ):
            found.add(path)
    return {path for path in found if path.is_file()}


def reached_modules(site: Site, roots: Iterable[str]) -> set[str]:
    """Find the modules of the Kubernetes client that imports reach.

    Args:
        site: The installed modules.
        roots: The modules outside of the client whose imports are followed.

    Raises:
        CannotStripError: A module looks up another by a name that is not in the code.
    """
    tables = {package: site.exports(package) for package in LAZY_PACKAGES}
    reached: set[str] = set()
    waiting = [name for root in roots for name in _wanted(site.source(root), tables)]
    while waiting:
        name = waiting.pop()
        if name.partition(".")[0] != CLIENT or name in reached or name not in site.modules:
            continue
        reached.add(name)
        waiting.append(name.rpartition(".")[0])
        if name not in tables:
            _check_lookups(name, site.source(name), tables)
            waiting += _wanted(site.source(name), tables)
        else:
            waiting += site.source(name).imports
    return reached


def _wanted(source: Source, tables: Mapping[str, Mapping[str, str]]) -> Iterator[str]:
    """What a module needs: its imports, and every class of the client whose name it has.

    Only modules that import something of the client are searched for names of classes.
    """
    yield from source.imports
    imported = [one for one in source.imports if one.startswith(CLIENT)]
    for package, table in tables.items():
        client = package.removesuffix(".api").removesuffix(".models")
        if any(client.startswith(one) or one.startswith(client) for one in imported):
            yield from (table[word] for word in source.words & table.keys())


def _check_lookups(module: str, source: Source, tables: Mapping[str, object]) -> None:
    for function, first, code in source.lookups:
        head, _, tail = first.partition(".")
        meant = source.bound.get(first) or ".".join(filter(None, [source.bound.get(head, head), tail]))
        is_member = function == "getattr" and meant not in tables
        if not is_member and (module, code) not in COMPUTED_NAMES:
            raise CannotStripError(
                f"{module} looks up a name that is not in its code: {code}. "
                "If the programs do not use it, add it to COMPUTED_NAMES."
            )


def check_imports(site: Site, kept: set[str], removed: set[str]) -> None:
    """Check that no module that stays imports one that is removed.

    Raises:
        CannotStripError: A module does.
    """
    # An import of a removed module contains one of these words; a file without them need not be parsed.
    tops = {name.partition(".")[0] for name in kept} - {CLIENT}
    ends = ((name.partition(".")[0], name.rpartition(".")[2]) for name in removed)
    words = {(last if top in tops else top).encode() for top, last in ends}
    mentioned = re.compile(rb"\b(" + b"|".join(sorted(map(re.escape, words))) + rb")\b")
    for module in sorted(kept):
        wanted = removed and mentioned.search(site.text(module)) and site.source(module).imports & removed
        if wanted:
            raise CannotStripError(f"{module} imports {', '.join(sorted(wanted))}, which would be removed")


def plan(site: Site) -> set[Path]:
    """Decide which files are removed.

    Raises:
        CannotStripError: Something is unknown.
    """
    files = unused_files(site)
    kept = {name for name, file in site.modules.items() if file not in files}
    of_client = {name for name in kept if name.partition(".")[0] == CLIENT}
    if of_client:
        users = {name for name in kept - of_client if CLIENT.encode() in site.text(name)}
        reached = reached_modules(site, users)
        files |= {site.modules[name] for name in of_client - reached}
        kept -= of_client - reached
    check_imports(site, kept, site.modules.keys() - kept)
    return files


def _remove(site: Site, files: set[Path]) -> None:
    for file in files:
        file.unlink()
    for folder in sorted((path for path in site.folder.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    for record in site.folder.glob("*.dist-info/RECORD"):
        lines = record.read_text(encoding="utf-8").splitlines(keepends=True)
        here = [line for line in lines if (site.folder / line.partition(",")[0].strip('"')).exists()]
        record.write_text("".join(here), encoding="utf-8")


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def strip(prefix: Path, program: str) -> str:
    """Strip a virtual environment.

    Args:
        prefix: Its folder.
        program: The program to keep.

    Returns:
        The size before and after.

    Raises:
        CannotStripError: Something is unknown; nothing was removed.
        subprocess.CalledProcessError: A module of MailProxy cannot be imported any more.
    """
    [folder] = prefix.glob("lib/python3.*/site-packages")
    before, site = _size(prefix), Site(folder)
    if not (prefix / "bin" / program).exists():
        raise CannotStripError(f"{prefix} has no program {program}")
    _remove(site, plan(site))
    for path in (prefix / "bin").iterdir():
        if path.name != program and not fnmatch.fnmatch(path.name, "python*"):
            path.unlink()
    packages = [path.parent.name for path in folder.glob("mailproxy*/__init__.py")]
    command = [prefix / "bin/python", "-IB", "-c", _IMPORT_ALL, *packages]
    subprocess.run(command, check=True)  # noqa: S603 - no shell
    return f"{prefix}: {before / 1e6:.1f} MB before, {_size(prefix) / 1e6:.1f} MB after"


if __name__ == "__main__":
    try:
        sys.stdout.write(strip(Path(sys.argv[1]), sys.argv[2]) + "\n")
    except CannotStripError as error:
        sys.exit(f"strip.py: {error}")
