# SPDX-License-Identifier: Apache-2.0
"""Runs the programs that set up networks and mounts."""

from __future__ import annotations

import subprocess


def run(*command: str, stdin: str = "") -> str:
    """Run a program, and return its output.

    Raises:
        RuntimeError: It failed; the message has its output.
    """
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout
