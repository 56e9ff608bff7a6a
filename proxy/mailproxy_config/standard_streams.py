# SPDX-License-Identifier: Apache-2.0
"""Standard input, output and error: closed descriptors, and errors of writing."""

from __future__ import annotations

import os
import sys
from typing import Final

_STREAMS: Final = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


class OutputError(Exception):
    """Standard output cannot be written; the text is the message."""


def open_standard_streams() -> None:
    """Open ``/dev/null`` on closed descriptors from 0 to 2.  Call it before anything else.

    Otherwise the next file or socket gets such a descriptor and receives what is written to
    standard error, and ``sys.stderr`` is ``None``.
    """
    for descriptor, (name, mode) in enumerate(_STREAMS):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # it gets the lowest number that is free
        if getattr(sys, name) is None:
            setattr(sys, name, open(descriptor, mode, encoding="utf-8", closefd=False))  # noqa: SIM115


def write_output(text: str) -> None:
    """Write to standard output without buffering.

    Raises:
        BrokenPipeError: The reader has closed the pipe.
        OutputError: It cannot be written, for example on a full disk.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise OutputError(f"standard output: {error.strerror}") from error


def discard_output() -> None:
    """Redirect buffered standard output to ``/dev/null``, because flushing it at exit would fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
