# SPDX-License-Identifier: Apache-2.0
"""Starts a program that receives SIGTERM when its parent ends, however the parent ends.

``python pdeathsig.py PARENT PROGRAM ARGUMENT...``: PARENT is the parent's process id.  It imports nothing of
this package, so that it starts fast.  Only Linux has such a signal (PR_SET_PDEATHSIG of prctl(2)); elsewhere
the program is started without it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ask for the signal, and execute the program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            sys.exit(1)
    os.execvp(program[0], program)  # noqa: S606  no shell: the arguments as they are


if __name__ == "__main__":
    main()
