# SPDX-License-Identifier: Apache-2.0
"""Why the proxy does not start, for the status of its pod.

Kubernetes reads the file after a container has ended, and shows its content as the message of the last
state of the container.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Final

from mailproxy_config.errors import Problem

TERMINATION_LOG: Final = Path("/dev/termination-log")
"""Where Kubernetes mounts the file: the default of ``terminationMessagePath``."""
MAX_BYTES: Final = 4096
"""Kubernetes reads no more."""


def write_termination_log(problems: Iterable[Problem], path: Path = TERMINATION_LOG) -> None:
    """Write problems, if there is such a file; lines of tables are left out, as they have names of users."""
    text = "; ".join(problem.without_line for problem in problems)
    shown = "".join(each if each.isprintable() else "?" for each in text).encode()[:MAX_BYTES]
    with suppress(OSError), path.open("r+b") as file:
        file.write(shown)
        file.truncate()
