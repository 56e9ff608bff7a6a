# SPDX-License-Identifier: Apache-2.0
"""The examples' programs exit with their pods, although process 1 of a container ignores most signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import yaml

from support.servers.programs import eventually

EXAMPLES: Final = Path(__file__).parents[2] / "deploy/examples"
PORT: Final = f":{9000:04X} "


def programs() -> Iterator[tuple[str, str]]:
    """Return each Python program in a ConfigMap of an example."""
    for path in sorted(EXAMPLES.glob("*.yaml")):
        for one in yaml.safe_load_all(path.read_text()):
            if one and one["kind"] == "ConfigMap":
                yield from ((path.stem, text) for name, text in one["data"].items() if name.endswith(".py"))


PROGRAMS: Final = list(programs())


def test_examples_with_programs() -> None:
    assert {example for example, _ in PROGRAMS} == {"sidecar"}


@contextlib.contextmanager
def as_process_1(file: Path) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run it as process 1 of a PID namespace; return its id here, and the process to wait for."""
    command = ["unshare", "--pid", "--net", "--fork", "--kill-child", sys.executable, str(file)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as outer:
        try:
            children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children")
            eventually(lambda: outer.poll() is not None or children.read_text(), "its start")
            if outer.poll() is not None:
                pytest.skip("needs root, and namespaces for processes and networks")
            inner = int(children.read_text())
            eventually(lambda: PORT in Path(f"/proc/{inner}/net/tcp").read_text(), "its port")
            yield inner, outer
        finally:
            outer.kill()


@pytest.mark.parametrize("program", [text for _, text in PROGRAMS], ids=[name for name, _ in PROGRAMS])
def test_program_as_process_1_ends_on_sigterm(program: str, tmp_path: Path) -> None:
    """It exits at once, and not at the end of the grace period."""
    file = tmp_path / "auth.py"
    file.write_text(program)
    with as_process_1(file) as (inner, outer):
        os.kill(inner, signal.SIGTERM)
        assert outer.wait(30) == 0
