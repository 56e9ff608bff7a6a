# SPDX-License-Identifier: Apache-2.0
"""The number of examples of generated tests: few and always the same, or many new ones with ``make fuzz``."""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

FACTOR: Final = int(os.environ.get("MAILPROXY_FUZZ", "1"))
"""How many times as many examples as by default."""

_EXAMPLES: Final = 50


def examples(count: int) -> int:
    """Return the number of examples of a test that does not use the default: ``count``, times ``FACTOR``."""
    return count * FACTOR


def load_profile() -> None:
    """Register the settings of all generated tests.

    They have no deadline.  By default the examples are the same in each run, so that
    a test fails only because of a change in the code.
    """
    settings.register_profile(
        "suite", deadline=None, derandomize=FACTOR == 1, max_examples=examples(_EXAMPLES), print_blob=True
    )
    settings.load_profile("suite")
