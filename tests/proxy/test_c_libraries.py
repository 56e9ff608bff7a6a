# SPDX-License-Identifier: Apache-2.0
"""The proxy starts with other C libraries than the one it is developed on: some lack constants."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGES = [Path(__file__).parents[2] / "proxy", Path(__file__).parents[2] / "operator"]
MISSING = {
    ("socket", name)
    for name in (
        *("EAI_NODATA", "EAI_ADDRFAMILY"),  # musl has none of them
        *("IPPROTO_MPTCP", "SO_INCOMING_CPU"),  # nor has an older C library
    )
}


def uses(path: Path) -> set[tuple[str, str]]:
    """Return constants of the standard library that a module uses without a check."""
    return {
        (node.value.id, node.attr)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: path.name)
def test_no_constant_is_imported_that_a_c_library_may_lack(package: Path) -> None:
    found = {path.name: uses(path) & MISSING for path in package.rglob("*.py")}
    assert {name: names for name, names in found.items() if names} == {}


_IMPORT = """
import os, socket, sys
for module, name in {missing!r}:
    if hasattr(sys.modules[module], name):
        delattr(sys.modules[module], name)
import mailproxy.app, mailproxy.cli, mailproxy.worker, mailproxy.dns.dns_client
"""


def test_proxy_is_imported_without_optional_constants() -> None:
    script = _IMPORT.format(missing=sorted(MISSING))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
