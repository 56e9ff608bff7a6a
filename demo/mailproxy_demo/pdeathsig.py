# SPDX-License-Identifier: Apache-2.0
"""Becomes another program that ends when whoever began it ends, however that comes about.

``python tether.py PARENT PROGRAM ARGUMENT...``: PARENT is the process id of whoever begins it.
It stands alone, so that it costs next to nothing to start.  Only Linux has such a tie (prctl(2));
elsewhere the program is simply run.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Tie the process to its parent, and become the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it has ended already
            sys.exit(1)
    os.execvp(program[0], program)  # noqa: S606  no shell: these very words


if __name__ == "__main__":
    main()
