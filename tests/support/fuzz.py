# SPDX-License-Identifier: Apache-2.0
"""How many examples generated tests try: by default the same few, for ``make fuzz`` many new ones."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

FACTOR: Final = int(os.environ.get("MAILPROXY_FUZZ", "1"))
"""How many times as many examples as by default."""

_EXAMPLES: Final = 50


def examples(count: int) -> int:
    """Examples of a test that wants another number than most: ``count`` by default."""
    return count * FACTOR


def load_profile() -> None:
    """Set what holds for all generated tests.

    None of them is timed.  By default they try the same examples each time, so that
    a change fails for what it changes.
    """
    settings.register_profile(
        "suite", deadline=None, derandomize=FACTOR == 1, max_examples=examples(_EXAMPLES), print_blob=True
    )
    settings.load_profile("suite")
