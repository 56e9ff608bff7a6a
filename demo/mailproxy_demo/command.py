# SPDX-License-Identifier: Apache-2.0
"""Starts the loop of ``local``: where lines go, and how it ends."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from mailproxy_demo.local import LocalOptions, run_local
from mailproxy_demo.manifest_file import FileSource


def local_command(file: Path | None, *, secrets: Path | None, demo: bool, once: bool) -> int:
    """Run a manifest on this machine.

    Returns:
        The exit code.

    Raises:
        ConfigError: The manifest is not valid.
    """
    if demo:
        from mailproxy_demo.demo import run_demo  # noqa: PLC0415

        return asyncio.run(run_demo(file, once=once, say=_say, log=_log))
    if file is None:
        raise ValueError("without the demo there is no built-in manifest")

    async def _is_well(_: object) -> bool:
        return True

    options = LocalOptions(
        secrets=secrets, when_ready=_is_well if once else None, once=once, out=sys.stdout, say=_say, log=_log
    )
    return asyncio.run(run_local(FileSource(file), options))


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


def _log(line: str) -> None:
    sys.stderr.write(f"  proxy | {line}\n")
    sys.stderr.flush()
