# SPDX-License-Identifier: Apache-2.0
"""Descriptors 0 to 2, which whoever starts a program may have closed."""

from __future__ import annotations

import os
import sys
from typing import Final

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def open_standard_streams() -> None:
    """Open ``/dev/null`` on those of descriptors 0 to 2 that are closed; call this before anything else.

    Otherwise the next file or socket gets such a number, and what is written
    to standard error goes there; and Python has no ``sys.stderr`` at all.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
